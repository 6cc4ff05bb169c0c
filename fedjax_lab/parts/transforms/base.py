"""Training beside a frozen sub-tree: parameters {"params": .., "frozen": ..} of which only the first part moves and travels.

The frozen part is in the server's state and reaches the clients as a field that they have already: it is neither counted nor stacked, and
local training does not carry it.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.types import Method, Task, Tree


def beside(task: Task, frozen: Tree) -> Task:
    """The task of "params" alone, at this frozen part; for training, without features and head."""

    def whole(params):
        return {"params": params, "frozen": frozen}

    return task._replace(apply=lambda params, *args, **more: task.apply(whole(params), *args, **more),
                         loss=lambda params, batch, key: task.loss(whole(params), batch, key), features=None, head=None)


def averaged(task: Task, work: Work, weighting: Weighting) -> Method:
    """FedAvg of "params"."""

    def local(key, message, client, data):
        return local_sgd(beside(task, message["frozen"]), work, weighting)(key, message, client, data)

    def broadcast(server, client, clock):
        return {"model": server["params"], "frozen": server["frozen"]}

    def serve(key, server, aggregate, cohort):
        return {**server, "params": tree.add(server["params"], aggregate["model"])}

    return Method(local, broadcast=broadcast, down={"frozen": known()}, serve=serve, steps=work.steps, task=task)
