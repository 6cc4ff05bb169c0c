"""Consensus ADMM (FedADMM): local models held together by duals.

Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed Optimization and Statistical Learning via the Alternating Direction Method of
Multipliers", Foundations and Trends in Machine Learning 2011, section 7.1.

    (1)  y_k = argmin f_k(y) + z_k^T (y - w) + (rho / 2) ||y - w||^2        in closed form, or by K_k steps of local training from y = w
    (2)  z_k <- z_k + rho (y_k - w)
    (3)  w = mean (y_k + z_k / rho) over ALL clients, those that were not sampled with the last they sent

f_k = F_k, or n_k / mean_j n_j F_k with weighting = examples.

Keeps: sum_k [z_k + rho (y_k - w)] = 0 with the new w; with (1) in closed form z_k = -grad f_k(y_k).
Reduces to: the w_k of RERCE-Fed and the w of RERCE-Fed-CLU, for least squares with all clients.
Departs: the server keeps the mean of (3) up to date by the changes that it receives. It can also average the sampled clients alone,
which diverges with partial participation.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
from jax.flatten_util import ravel_pytree

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, heard, mass, weigh
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import corrected, proximal
from fedjax_lab.parts.solvers.quadratic import quadratic
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Distributed Optimization and Statistical Learning via the Alternating Direction Method of Multipliers"


class Consensus(NamedTuple):
    """params: w.  members: float32, clients with examples.  mean_size: float32, their mean number of examples."""

    params: Tree
    members: jax.Array
    mean_size: jax.Array


class Split(NamedTuple):
    """A client's row: its model y and dual z."""

    y: Tree
    z: Tree


@method(family="optimization", paper=PAPER, year=2011, stateful=True, refuses={"server": "its model is the mean of all that is stored"})
def consensus_admm(task: Task, work: Work, *, rho: Positive = 1.0, solve: Literal["steps", "exact"] = "steps",
                   average: Literal["all", "sampled"] = "all", weighting: Weighting = "uniform") -> Method:
    """Local models that minimize an augmented Lagrangian, and a dual for each.

    Args:
      rho: penalty on the distance from consensus.
      solve: local steps, or in closed form where the loss is quadratic in the parameters.
      average: of what all clients sent last, or of what the sampled ones send.
      weighting: the objective counts clients alike, or by their examples.
    """

    def minimum(key, w, z, scale, data):  # (1)
        if solve == "steps":
            direction = proximal(corrected(gradient(task), z, scale), rho, w)
            y = descend(batches(key, data, work), w, direction, work.optimizer)
            return y.params, y.loss
        (at, shape), pull = ravel_pytree(w), ravel_pytree(z)[0]
        y = shape(quadratic("consensus-admm", key, task, w, data).proximal(scale, rho, rho * at - pull))
        return y, task.loss(y, data.train.whole(), key)[0]

    def local(key, message, row, data):
        w = message["model"]
        scale = 1.0 if weighting == "uniform" else data.size / message["mean_size"]
        y, loss = minimum(key, w, row.z, scale, data)
        new = Split(y, tree.axpy(rho, moving(tree.sub(y, w)), row.z))  # (2)
        sent = [tree.axpy(1 / rho, r.z, r.y) for r in (new, row)]
        return Result({"model": sent[0] if average == "sampled" else tree.sub(*sent)}, weigh("uniform", data), new, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        count, change = heard(cohort), aggregate["model"]
        if average == "sampled":
            return server._replace(params=tree.select(count > 0, change, server.params))
        return server._replace(params=jax.tree.map(lambda w, u: (w + u * count / server.members).astype(w.dtype), server.params, change))  # (3)

    def server(x, census):
        members = mass("uniform", census)
        return Consensus(x, members, mass("examples", census) / members)

    sends = () if weighting == "uniform" else ("mean_size",)
    return stateful(local, serve, server, lambda x: Split(x, tree.zeros_like(x)), sends, steps=work.steps)
