"""FedDC: local drift decoupling and correction.

Gao, Fu, Li, Chen, Xu, Xu, "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction", CVPR 2022.

    (1)  v = grad F(y; b) + alpha (y - (x^t - h_i)) + c - c_i      y <- y - lr v, K_i steps from y = x^t
    (2)  h_i <- h_i + (y_i - x^t)                                  the drift, for i in S
    (3)  c_i' = c_i - c + (x^t - y_i) / (K_i lr)
    (4)  x^{t+1} = mean_S y_i + (1 / N) sum_j h_j                  with this round's h
    (5)  c <- c + (1 / N) sum_S (c_i' - c_i)

(1) is the gradient of F + (alpha / 2) ||y - (x - h_i)||^2 + <y, c - c_i>: FedDyn's penalty and SCAFFOLD's linear term.

Keeps: h_i is the sum of i's own displacements; c is the mean of all c_i; the absent keep both.
Reduces to: FedDyn without the linear term.
Departs: a round in which nobody is heard leaves x alone. (3) holds for plain SGD, and a client without steps keeps its c_i.
"""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import rules, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import dual
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.control import mean_gradient
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import corrected, proximal
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction"


class Decoupled(NamedTuple):
    """params, h, average as in parts/dual.  c: the mean of c_j over all N clients."""

    params: Tree
    h: Tree
    average: Tree
    c: Tree


class Row(NamedTuple):
    """A client's drift h_i and control variate c_i."""

    h: Tree
    c: Tree


@method(family="optimization", paper=PAPER, year=2022, stateful=True, plain_sgd="whose change is the mean gradient")
def feddc(task: Task, work: Work, *, alpha: Positive = 0.1) -> Method:
    """Local drift, learned by every client, taken out of what is averaged.

    Args:
      alpha: strength of the penalty; 0.01 to 0.1.
    """

    def local(key, message, row, data):
        x, c, plan = message["model"], message["c"], batches(key, data, work)
        linear = tree.axpy(alpha, row.h, tree.sub(c, row.c))
        y = descend(plan, x, proximal(corrected(gradient(task), linear), alpha, x), work.optimizer)  # (1)
        change = tree.sub(y.params, x)
        fresh = mean_gradient(row.c, c, change, plan.steps, work.lr)  # (3)
        upload = {"model": change, "c": tree.sub(fresh, row.c)}
        return Result(upload, weigh("uniform", data), Row(tree.add(row.h, moving(change)), fresh), metrics={"loss": y.loss})  # (2)

    def serve(key, server, aggregate, cohort):
        new = dual.closed(dual.Dual(*server[:3]), aggregate["model"], cohort)  # (4)
        return Decoupled(*new, tree.axpy(1 / cohort.clients, aggregate["c"], server.c))  # (5)

    def server(x, people):
        return Decoupled(*dual.opened(x), tree.zeros_like(x))

    def client(x):
        return Row(tree.zeros_like(x), tree.zeros_like(x))

    return stateful(local, serve, server, client, ("c",), aggregate={"c": rules.total()}, steps=work.steps)
