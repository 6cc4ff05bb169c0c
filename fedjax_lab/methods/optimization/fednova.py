"""FedNova: normalized averaging of clients that take different numbers of steps.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020.

    (1)  y <- y - optimizer[grad F(y; b) + mu (y - x^t)]             K_i own steps from x^t
    (2)  x^t - y_i = lr sum_k a_{i,k} g_{i,k}                        what a linear optimizer makes of the gradients g it meets
    (3)  G_i = (x^t - y_i) / (lr ||a_i||_1)
    (4)  x^{t+1} = x^t - server_lr lr tau_eff sum_i p_i G_i          tau_eff = sum_i p_i ||a_i||_1, p_i over the sampled clients

||a_i||_1 is how far a scalar with gradient 1 travels in K_i steps of (1), over lr: K_i for SGD,
[K_i - rho (1 - rho^K_i) / (1 - rho)] / (1 - rho) for momentum rho, (1 - (1 - lr mu)^K_i) / (lr mu) for the proximal term, and right
for them together.

Keeps: the fixed point does not depend on the K_i, to first order in lr.
Reduces to: FedAvg for equal K_i.
Departs: uploads -lr G_i, the change over ||a_i||_1, so that wires and robust rules act on a change.
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Batches, Work, batches, descend, gradient, loop
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.moving import scaled, stepped
from fedjax_lab.parts.oracles.directions import proximal
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization"


@method(family="optimization", paper=PAPER, year=2020)
def fednova(task: Task, work: Work, *, server_lr: Positive = 1.0, mu: NonNegative = 0.0, tau: Literal["norm", "steps"] = "norm",
            weighting: Weighting = "examples") -> Method:
    """FedAvg with each client's change divided by the gradients it holds.

    Args:
      server_lr: step of the server.
      mu: strength of a proximal term, 0 for none.
      tau: tau_eff is the mean of ||a_i||_1, or the mean of the steps K_i.
      weighting: clients count by their examples, or all alike.
    """
    if not _linear(work.optimizer):
        raise ValueError(f"'fednova' refuses client_optimizer '{work.named}': it must be sgd or momentum, whose steps are linear in the gradients")

    def local(key, message, client, data):
        x, plan = message["model"], batches(key, data, work)
        y = descend(plan, x, proximal(gradient(task), mu, x), work.optimizer)  # (1)
        norm = _travel(plan, work, mu)  # (2)
        share = 1 / jnp.where(norm > 0, norm, 1)
        upload = {"model": scaled(share, tree.sub(y.params, x)), "tau": norm if tau == "norm" else plan.steps.astype(norm.dtype)}  # (3)
        return Result(upload, weigh(weighting, data), metrics={"loss": y.loss})

    def serve(key, x, aggregate, cohort):
        return stepped(server_lr * aggregate["tau"], aggregate["model"], x)  # (4)

    return Method(local, serve=serve, steps=work.steps)


def _travel(plan: Batches, work: Work, mu) -> jax.Array:
    """||a_i||_1."""

    def step(t, key, batch, carry):
        s, state = carry
        update, state = work.optimizer.update(1 + mu * s, state, s)
        return s + update, state

    start = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
    return -loop(plan, (start, work.optimizer.init(start)), step)[0] / work.lr


def _linear(optimizer: optax.GradientTransformation) -> bool:
    """Whether all that the optimizer remembers is momentum."""

    def momentum(state):
        return isinstance(state, optax.TraceState)

    return all(map(momentum, jax.tree.leaves(optimizer.init(jnp.zeros(())), is_leaf=momentum)))
