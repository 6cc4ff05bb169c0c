"""What a local step descends along: functions from Direction to Direction, and gradients at several points.

A Direction is (key, params, batch) -> (loss, v, stats), as in fedjax_lab.local. What is added here leaves the normalization
statistics of a model alone: they carry no gradient.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Batches, Direction, Work, batches, gradient, loop, with_stats
from fedjax_lab.parts.moving import moving
from fedjax_lab.types import Batch, ClientData, Key, Task, Tree

TINY = 1e-7  # added to the norm that a perturbation is divided by


def proximal(direction: Direction, mu: Any, anchor: Tree) -> Direction:
    """v + mu (y - anchor): the pull of (mu / 2) ||y - anchor||^2."""

    def pulled(key: Key, y: Tree, batch: Batch):
        loss, v, stats = direction(key, y, batch)
        return loss, tree.axpy(mu, moving(tree.sub(y, anchor)), v), stats

    return pulled


def corrected(direction: Direction, c: Tree, a: Any = 1.0) -> Direction:
    """a v + c, with a correction c that stays the same over the local steps."""

    def shifted(key: Key, y: Tree, batch: Batch):
        loss, v, stats = direction(key, y, batch)
        return loss, tree.axpy(a, v, moving(c)), stats

    return shifted


def ascended(direction: Direction, rho: Any, alpha: Any = 1.0) -> Direction:
    """(1 - alpha) g + alpha g', with g at y and g' at y + rho g / ||g||, on the same batch and key: the sharpness-aware gradient.

    The norm is over all parameters. The ascended point is a constant: nothing is differentiated through it. Loss and statistics are
    those at y.
    """

    def sharp(key: Key, y: Tree, batch: Batch):
        loss, g, stats = direction(key, y, batch)
        _, up, _ = direction(key, tree.axpy(rho / (tree.norm(g) + TINY), g, y), batch)
        return loss, jax.tree.map(lambda g, up: (1 - alpha) * g + alpha * up, g, up), stats

    return sharp


def clipped(direction: Direction, limit: Any) -> Direction:
    """v, made shorter where its norm over all parameters exceeds the limit."""

    def short(key: Key, y: Tree, batch: Batch):
        loss, v, stats = direction(key, y, batch)
        return loss, tree.scale(jnp.minimum(1, limit / tree.norm(v)), v), stats

    return short


def gradient_at(task: Task, params: Tree, key: Key, batch: Batch) -> Tree:
    """The gradient of the task's loss on this batch, with this key: two calls with one key see the same sample."""
    return jax.grad(lambda p: task.loss(p, batch, key)[0])(params)


def full_gradient(key: Key, task: Task, params: Tree, data: ClientData, work: Work, wanted: Any = True) -> Tree:
    """grad F_i(params) over all of the client's training examples, gathered batch by batch; zero without examples.

    Where the traced bool `wanted` is False nothing is computed and the result is zero.
    """
    plan, share = _one_pass(key, data, work, wanted)

    def step(t, key, batch, total):
        return tree.axpy(jnp.sum(batch["mask"]) * share, gradient_at(task, params, key, batch), total)

    return loop(plan, tree.zeros_like(params), step)


def full_loss_and_gradient(key: Key, task: Task, params: Tree, data: ClientData, work: Work, wanted: Any = True) -> tuple[jax.Array, Tree]:
    """(F_i(params), grad F_i(params)), as in `full_gradient`."""
    plan, share = _one_pass(key, data, work, wanted)

    def step(t, key, batch, total):
        loss, grad, _ = gradient(task)(key, params, batch)
        return tree.axpy(jnp.sum(batch["mask"]) * share, (loss, grad), total)

    return loop(plan, (0 * jnp.sum(plan.steps, dtype=jnp.float32), tree.zeros_like(params)), step)


def full_loss(key: Key, task: Task, params: Tree, data: ClientData, work: Work) -> jax.Array:
    """F_i(params), as in `full_gradient`."""
    plan, share = _one_pass(key, data, work, True)

    def step(t, key, batch, total):
        return total + jnp.sum(batch["mask"]) * share * task.loss(params, batch, key)[0]

    return loop(plan, 0 * jnp.sum(plan.steps, dtype=jnp.float32), step)


def _one_pass(key: Key, data: ClientData, work: Work, wanted: Any) -> tuple[Batches, jax.Array]:
    """Batches that hold all of the client's examples once, whatever its allowance, or none; and one over the number of examples."""
    plan = batches(key, data._replace(allowance=jnp.int32(jnp.iinfo(jnp.int32).max)), work._replace(epochs=1, local_steps=0))
    return plan._replace(steps=jnp.where(wanted, plan.steps, 0)), 1 / jnp.maximum(data.size, 1)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Row by row, [B]; zero, and without slope, where a row is zero."""
    norms = jnp.sum(a * a, -1) * jnp.sum(b * b, -1)
    there = norms > 1e-16
    return jnp.where(there, jnp.sum(a * b, -1) * jax.lax.rsqrt(jnp.where(there, norms, 1)), 0)


Remembering = Callable[[Key, Tree, Tree, Batch], tuple[jax.Array, Tree, Tree, Tree]]
"""(key, params, memory, batch) -> (loss, v, stats, memory): a Direction that carries something from step to step."""


def descend_with(
    plan: Batches, params: Tree, memory: Tree, direction: Remembering, optimizer: optax.GradientTransformation
) -> tuple[Tree, Tree, jax.Array]:
    """`descend` for a direction with a memory: (last iterate, last memory, mean loss over the steps taken)."""

    def step(t, key, batch, carry):
        y, memory, state, total = carry
        loss, v, stats, memory = direction(key, y, memory, batch)
        update, state = optimizer.update(v, state, y)
        return with_stats(optax.apply_updates(y, update), stats), memory, state, total + loss

    zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
    y, memory, _, total = loop(plan, (params, memory, optimizer.init(params), zero), step)
    return y, memory, total / jnp.maximum(plan.steps, 1)
