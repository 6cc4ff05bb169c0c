"""MoNNA: momentum, and averaging with the nearest neighbors.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023,
Algorithm 1.

    (1)  m_i <- beta m_i + (1 - beta) grad F_i(x_i; b),    y_i = x_i - lr m_i      m_i = 0 at the start, and never mixed
    (2)  x_i <- mean of the n - f received y_j that are nearest to y_i             its own among them; n received, f may be attackers'

Keeps: x_i lies in the convex hull of what was received; the own y_i is always in the mean.
Reduces to: SGD with momentum on all nodes' batches, with equal models, with share = 0 on a full graph.
Departs: the paper's nodes are asynchronous and wait for n - f of n, of which they keep n - 2f: here all that are active are heard, and
the f farthest are left out in the same way. Its graph is --graph=full, and neighbors of a node stand for all elsewhere. Its rates fall
as 1 / (1 + t / 50), every 50 steps, for which there is lr_decay. A node without examples listens and is not listened to.
"""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, gradient
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.oracles.directions import descend_with
from fedjax_lab.registry import method
from fedjax_lab.spec import Range, Share
from fedjax_lab.types import Method, Result, Stacked, Task

PAPER = "Robust Collaborative Learning with Linear Gradient Overhead"


@method(family="decentralized", paper=PAPER, year=2023, stateful=True, schedule="gossip", local_steps=1, batch_size=25, lr=0.75,
        refuses={"aggregator": "its rule is the method"})
def monna(task: Task, work: Work, *, beta: Share = 0.99, share: Annotated[float, Range(0, 0.5, open="high")] = 0.2) -> Method:
    """A step along the node's own momentum, then the mean of the nearest of the neighbors' models.

    Args:
      beta: share of the old momentum that stays.
      share: of the nodes heard that may be attackers, rounded up: as many of the farthest are left out.
    """

    def moved(key, y, m, batch):
        loss, g, stats = gradient(task)(key, y, batch)
        m = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, m, g)
        return loss, m, stats, m

    def local(key, message, m, data):
        x = message["model"]
        y, m, loss = descend_with(batches(key, data, work), x, m, moved, work.optimizer)  # (1)
        return Result({"model": tree.sub(y, x)}, weigh("uniform", data), m, metrics={"loss": loss})

    return Method(local, init_client=lambda key, params, facts: tree.zeros_like(params), aggregate={"model": nearest(share)}, steps=work.steps)


def nearest(share: float) -> Stacked:
    """The mean of the uploads nearest to the first one, all but the share that may be attackers'."""

    def combine(stack, weights, cohort):
        there = weights > 0
        apart = [jnp.sum(jnp.square(v - v[:1]).reshape(v.shape[0], -1), 1) for v in jax.tree.leaves(stack)]
        place = jnp.argsort(jnp.argsort(jnp.where(there, sum(apart), jnp.inf)))
        count = jnp.sum(there)
        kept = there & (place < jnp.maximum(count - jnp.ceil(share * count - 1e-6), 1))  # (2)
        mean = kept / jnp.maximum(jnp.sum(kept), 1)
        return jax.tree.map(lambda v: jnp.einsum("i,i...->...", mean.astype(v.dtype), jnp.where(_column(kept, v), v, 0)), stack)

    return Stacked(combine)


def _column(mask: jax.Array, v: jax.Array) -> jax.Array:
    return mask.reshape(-1, *[1] * (v.ndim - 1))
