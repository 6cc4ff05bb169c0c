"""FedSpeed: dynamic regularization with an ascended gradient.

Sun, Shen, Huang, Ding, Tao, "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy", ICLR 2023.

    (1)  g = (1 - alpha) grad F(y; b) + alpha grad F(y + rho g1 / ||g1||; b)       g1 = grad F(y; b), the same batch, no second order
    (2)  y <- y - lr clip[g + lam (y - x^t) + lam h_i]                             K_i steps from y = x^t
    (3)  h_i <- h_i + (y_i - x^t)                                                  for i in S
    (4)  x^{t+1} = mean_S y_i + (1 / N) sum_j h_j                                  dual_mean = all: the released code, with this round's h
         x^{t+1} = mean_S (y_i + h_i)                                              dual_mean = sampled: the paper

lam is the paper's 1 / lambda and lam h_i its prox-correction -g_i.

Keeps: h_i is the sum of i's own displacements; with rho = 0 a fixed point is a stationary point of the global objective, for every lam.
Reduces to: FedDyn with rho = 0 or alpha = 0.
Departs: clips the whole bracket of (2), where the release clips before it adds lam y. Weight decay is the client optimizer's and not
in the ascent. A round in which nobody is heard leaves x alone. lr_decay is 1 by default, 0.998 or 0.9995 in the released runs.
"""
from __future__ import annotations

from typing import Literal

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import dual
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import ascended, clipped, corrected, proximal
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive, Share
from fedjax_lab.types import Method, Result, Task

PAPER = "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy"


@method(family="optimization", paper=PAPER, year=2023, stateful=True)
def fedspeed(task: Task, work: Work, *, lam: Positive = 0.1, rho: NonNegative = 0.1, alpha: Share = 1.0, clip: Positive = 10.0,
             dual_mean: Literal["all", "sampled"] = "all") -> Method:
    """FedDyn's terms around a sharpness-aware gradient, for long local intervals.

    Args:
      lam: strength of the prox term and its correction.
      rho: length of the ascent step.
      alpha: share of the ascended gradient.
      clip: largest norm of a local direction, inf for none.
      dual_mean: whether the server adds the mean dual of all clients, or that of the sampled ones.
    """

    def local(key, message, h_i, data):
        x = message["model"]
        sharp = ascended(gradient(task), rho, alpha)  # (1)
        direction = clipped(proximal(corrected(sharp, tree.scale(lam, h_i)), lam, x), clip)
        y = descend(batches(key, data, work), x, direction, work.optimizer)  # (2)
        change = tree.sub(y.params, x)
        h_i = tree.add(h_i, moving(change))  # (3)
        upload = change if dual_mean == "all" else tree.add(change, h_i)
        return Result({"model": upload}, weigh("uniform", data), h_i, metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        if dual_mean == "all":
            return dual.closed(server, aggregate["model"], cohort)  # (4)
        return server._replace(params=tree.add(server.params, aggregate["model"]))

    return stateful(local, serve, lambda x, people: dual.opened(x), tree.zeros_like, steps=work.steps)
