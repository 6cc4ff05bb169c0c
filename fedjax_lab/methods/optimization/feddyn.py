"""FedDyn: dynamic regularization.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR 2021.

    (1)  v = grad F(y; b) + lam (y - x^t) + lam h_i       y <- y - lr v, K_i steps from y = x^t
    (2)  h_i <- h_i + (y_i - x^t)                         for i in S; the paper's g_i is -lam h_i
    (3)  x^{t+1} = mean_S y_i + (1 / N) sum_j h_j         all N clients, with this round's h; the paper's h is -lam times that mean

With weighting = examples lam is lam / (N p_i) at client i, whose sum of objectives is then weighted by p_i = n_i / sum_j n_j.

Keeps: h_i is the sum of i's own displacements; a fixed point is a stationary point of the global objective.
Reduces to: FedSpeed with rho = 0.
Departs: a round in which nobody is heard leaves x alone. The whole bracket (1) can be clipped (off by default; released runs clip at 10, with
lr_decay 0.998 to 1). The averaged model mean_S y_i is kept beside x, and `evaluate` says which of them is evaluated.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import dual
from fedjax_lab.parts.clients import Weighting, mass, weigh
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import clipped, corrected, proximal
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Federated Learning Based on Dynamic Regularization"


class Dyn(NamedTuple):
    """params, h, average as in parts/dual.  mean_size: float32, the mean number of examples of a client."""

    params: Tree
    h: Tree
    average: Tree
    mean_size: jax.Array


@method(family="optimization", paper=PAPER, year=2021, stateful=True)
def feddyn(task: Task, work: Work, *, lam: Positive = 0.1, clip: Positive = float("inf"), evaluate: Literal["model", "average"] = "model",
           weighting: Weighting = "uniform") -> Method:
    """Local objectives made consistent with the global one by a linear and a quadratic term.

    Args:
      lam: strength of both terms, the paper's alpha; 0.01 to 0.1.
      clip: largest norm of a local direction, inf for none.
      evaluate: the model x that clients receive, or the mean of the last local models.
      weighting: the objective counts clients alike, or by their examples.
    """

    def local(key, message, h_i, data):
        x = message["model"]
        pull = lam if weighting == "uniform" else lam * message["mean_size"] / jnp.maximum(data.size, 1)
        direction = proximal(corrected(gradient(task), tree.scale(pull, h_i)), pull, x)
        y = descend(batches(key, data, work), x, clipped(direction, clip), work.optimizer)  # (1)
        change = tree.sub(y.params, x)
        return Result({"model": change}, weigh("uniform", data), tree.add(h_i, moving(change)), metrics={"loss": y.loss})  # (2)

    def serve(key, server, aggregate, cohort):
        return Dyn(*dual.closed(dual.Dual(*server[:3]), aggregate["model"], cohort), server.mean_size)  # (3)

    def server(x, people):
        return Dyn(*dual.opened(x), mass("examples", people) / people.clients)

    sends = () if weighting == "uniform" else ("mean_size",)
    deployed = (lambda server: server.params) if evaluate == "model" else (lambda server: server.average)
    return stateful(local, serve, server, tree.zeros_like, sends, steps=work.steps, deploy=deployed)
