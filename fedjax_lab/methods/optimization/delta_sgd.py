"""Delta-SGD: clients that tune their own step size.

Kim, Toghani, Uribe, Kyrillidis, "Adaptive Federated Learning with Auto-Tuned Clients", ICLR 2024.

    (1)  G = grad F(y_k; b), G' = grad F(y_{k-1}; b)                                         one batch b, norms over all parameters
    (2)  eta_k = min{ gamma ||y_k - y_{k-1}|| / (2 ||G - G'||), sqrt(1 + delta theta_{k-1}) eta_{k-1} }
         the second where either norm is zero, as in the first step
    (3)  theta_k = eta_k / eta_{k-1}
    (4)  y_{k+1} = y_k - eta_k G                                                             from y_0 = y_{-1} = x^t, eta0, theta0
    (5)  x^{t+1} = mean_S y_i

Keeps: eta_k / eta_{k-1} <= sqrt(1 + delta theta_{k-1}); all of it starts anew in every round.
Reduces to: FedAvg with lr = 1 / L where all curvature is L, gamma = 2 and eta0 = 1 / L.
Departs: the release adds 1e-8 to eta_k. lr and client_optimizer have no part in it.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, gradient, loop, with_stats
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import gradient_at
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Adaptive Federated Learning with Auto-Tuned Clients"


class Tuned(NamedTuple):
    """y_k, y_{k-1}, eta_{k-1}, theta_{k-1}, and the sum of the losses."""

    y: Tree
    before: Tree
    eta: jax.Array
    theta: jax.Array
    loss: jax.Array


@method(family="optimization", paper=PAPER, year=2024, plain_sgd="which the step rule replaces")
def delta_sgd(task: Task, work: Work, *, gamma: Positive = 2.0, delta: NonNegative = 0.1, eta0: Positive = 0.2, theta0: NonNegative = 1.0,
              weighting: Weighting = "uniform") -> Method:
    """FedAvg whose clients read their step size off the local smoothness.

    Args:
      gamma: factor of the local smoothness estimate; lr has no part in this method.
      delta: how fast a step size may grow.
      eta0, theta0: first step size and first ratio of step sizes.
      weighting: clients count by their examples, or all alike.
    """

    def step(t, key, batch, s):
        loss, new, stats = gradient(task)(key, s.y, batch)
        moved = tree.norm(moving(tree.sub(s.y, s.before)))
        bent = tree.norm(tree.sub(new, gradient_at(task, s.before, key, batch)))  # (1)
        cap = jnp.sqrt(1 + delta * s.theta) * s.eta
        known = (moved > 0) & (bent > 0)
        eta = jnp.where(known, jnp.minimum(gamma * moved / (2 * jnp.where(known, bent, 1)), cap), cap)  # (2)
        y = with_stats(tree.axpy(-eta, new, s.y), stats)  # (4)
        return Tuned(y, s.y, eta, eta / s.eta, s.loss + loss)  # (3)

    def local(key, message, client, data):
        x, plan = message["model"], batches(key, data, work)
        zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
        last = loop(plan, Tuned(x, x, zero + eta0, zero + theta0, zero), step)
        metrics = {"loss": last.loss / jnp.maximum(plan.steps, 1), "eta": last.eta}
        return Result({"model": tree.sub(last.y, x)}, weigh(weighting, data), metrics=metrics)

    return Method(local, steps=work.steps)  # (5) is the mean change, which every server adds by default
