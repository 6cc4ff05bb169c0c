"""FedAsync: every upload is mixed into the model when it comes.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, Algorithm 1.

    (1)  min_y F_i(y) + (rho / 2) ||y - w^v||^2 by      y <- y - lr [grad F(y; b) + rho (y - w^v)]      from y = w^v, sent after v updates
    (2)  a_s = alpha s(n - v)                            n updates when the upload comes; s constant, polynomial or hinge
    (3)  w <- (1 - a_s) w + a_s y_i                      mixing;  w <- w + a_s (y_i - w^v)      delta

Keeps: with all y_i equal to w nothing moves; a_s <= alpha.
Reduces to: sequential local SGD with alpha = 1, rho = 0, a constant s and one client in training at a time.
Departs: the two variants of (3) are different algorithms, of which the paper has the first. Where an update consumes several uploads, w moves
by the mean of their steps. Uploads older than the paper's bound are the schedule's to reject (max_staleness).
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.oracles.directions import proximal
from fedjax_lab.parts.staleness import Staleness, worth
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Range
from fedjax_lab.types import Method, Task

PAPER = "Asynchronous Federated Optimization"


@method(family="schedules", paper=PAPER, year=2019, schedule="buffered:1")
def fedasync(task: Task, work: Work, *, alpha: Annotated[float, Range(0, 1, "low")] = 0.6, staleness: Staleness = "polynomial", a: NonNegative = 0.5,
             b: NonNegative = 4.0, rho: NonNegative = 0.005, variant: Literal["mixing", "delta"] = "mixing") -> Method:
    """Every upload is mixed into the model at once, the less the older its start.

    Args:
      alpha: share of a fresh upload in the new model; 0.6 or 0.9 in the paper.
      staleness: how an upload's worth falls with the updates since its start.
      a: how fast; 0.5 for polynomial and 10 for hinge in the paper.
      b: up to how many updates hinge counts in full.
      rho: strength of the pull towards the model received.
      variant: mix the client's model in, or add its change.
    """

    def local(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, proximal(gradient(task), rho, x), work.optimizer)  # (1)
        a_s = alpha * worth(staleness, data.staleness, a, b) * weigh("uniform", data)  # (2)
        upload = {"model": tree.sub(y.params, x)} | ({"start": x} if variant == "mixing" else {})
        return weighted(upload, a_s, metrics={"loss": y.loss})

    def serve(key, w, aggregate, cohort):
        a_s = shared(aggregate, heard(cohort))
        if variant == "delta":
            return stepped(a_s, aggregate["model"], w)  # (3)
        return jax.tree.map(lambda w, v, u: w + a_s * ((v - w) + u), w, aggregate["start"], aggregate["model"])  # (3)

    return summed(local, "start", serve=serve, steps=work.steps)
