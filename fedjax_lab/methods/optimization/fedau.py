"""FedAU: averaging under unknown participation.

Wang, Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging", ICLR 2024.

    (1)  u_i = y_i - x^t                                          K_i steps of SGD from x^t, for the clients A_t that are there
    (2)  w_i = running mean of the lengths of the intervals between i's participations, an absence of `cutoff` rounds ending an interval
    (3)  x^{t+1} = x^t + server_lr sum_{A_t} p_i w_i u_i          p_i = n_i / sum_j n_j over ALL clients

Keeps: w_i at round t uses rounds before t alone, and starts at 1; one who takes part every k rounds has w_i = k.
Reduces to: FedAvg when everybody takes part.
Departs: nothing.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import intervals
from fedjax_lab.parts.clients import Weighting, mass, weigh
from fedjax_lab.parts.moving import stepped, summed
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging"


class Massed(NamedTuple):
    """params: the model x.  mass: float32, the sum of all clients' weights."""

    params: Tree
    mass: jax.Array


@method(family="optimization", paper=PAPER, year=2024, stateful=True)
def fedau(task: Task, work: Work, *, server_lr: Positive = 1.0, cutoff: Annotated[int, Range(0)] = 50, weighting: Weighting = "examples") -> Method:
    """FedAvg with weights that make up for how rarely a client takes part, learned on the way.

    Args:
      server_lr: step of the server.
      cutoff: an absence of so many rounds counts as an interval; 0 for none.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, record, data):
        record = intervals.before(record, data.clock, cutoff)  # (2)
        y = descend(batches(key, data, work), message["model"], gradient(task), work.optimizer)
        u = tree.sub(y.params, message["model"])  # (1)
        weight = weigh(weighting, data) * record.mean
        return Result({"model": u}, weight, intervals.after(record, data.clock), metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        return server._replace(params=stepped(server_lr / server.mass, aggregate["model"], server.params))  # (3)

    def server(x, people):
        return Massed(x, mass(weighting, people))

    return stateful(local, serve, server, lambda x: intervals.never(), aggregate={"model": summed()}, steps=work.steps)
