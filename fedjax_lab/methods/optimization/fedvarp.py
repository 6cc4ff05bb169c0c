"""FedVARP: the server remembers every client's last change, against the variance of partial participation.

Jhunjhunwala, Sharma, Nagarkatti, Joshi, "FedVARP: Tackling the Variance Due to Partial Client Participation", UAI 2022.

    (1)  u_i = y_i - x^t                                         K_i steps of SGD from x^t
    (2)  v = mean_S (u_i - h_i) + (1 / N) sum_j h_j              x^{t+1} = x^t + server_lr v
    (3)  h_i <- u_i for i in S, after (2)

Keeps: the server's running sum is (1 / N) sum_j h_j; a client that does not take part keeps its h_i; E_S v = mean_N u_i.
Reduces to: FedAvg (uniform) when all clients take part.
Departs: h_i lies in the row of client i, where the engine cuts the table over the devices, and stands for the server's table: nothing is
sent for it. It is u_i before any lossy wire. ClusterFedVARP, one h per cluster, is not here; unequal probabilities are FedStale's.
"""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.moving import moving, stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedVARP: Tackling the Variance Due to Partial Client Participation in Federated Learning"


class Varp(NamedTuple):
    """params: the model x.  h: the mean of h_j over all N clients."""

    params: Tree
    h: Tree


@method(family="optimization", paper=PAPER, year=2022, stateful=True)
def fedvarp(task: Task, work: Work, *, server_lr: Positive = 1.0) -> Method:
    """FedAvg that stands in for absent clients with their last known change.

    Args:
      server_lr: step of the server.
    """

    def local(key, message, h_i, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, gradient(task), work.optimizer)
        u = tree.sub(y.params, x)  # (1)
        return Result({"model": u, "stale": h_i}, weigh("uniform", data), moving(u), metrics={"loss": y.loss})  # (3)

    def serve(key, server, aggregate, cohort):
        news = tree.sub(aggregate["model"], aggregate["stale"])
        v = tree.add(news, server.h)  # (2)
        return Varp(stepped(server_lr, v, server.params), tree.axpy(heard(cohort) / cohort.clients, moving(news), server.h))

    return stateful(local, serve, lambda x, people: Varp(x, tree.zeros_like(x)), tree.zeros_like, up={"stale": known()}, steps=work.steps)
