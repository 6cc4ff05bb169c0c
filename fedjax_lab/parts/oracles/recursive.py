"""Differences of two gradients on one batch, and the recursive direction that they sum up to.

Nguyen, Liu, Scheinberg, Takac, "SARAH: A Novel Method for Machine Learning Problems Using Stochastic Recursive Gradient", ICML 2017.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Batches, gradient, loop
from fedjax_lab.parts.oracles.directions import descend_with, gradient_at
from fedjax_lab.types import Task, Tree


def recursive(plan: Batches, task: Task, x: Tree, q: Tree, optimizer: optax.GradientTransformation) -> tuple[Tree, jax.Array]:
    """(last iterate, mean loss) of y <- y - optimizer(q) with q <- q + grad F(y_k; b) - grad F(y_{k-1}; b), from y_0 = y_{-1} = x.

    Both gradients of a step see one batch and one key, and the first step is along the q given.
    """

    def direction(key, y, memory, batch):
        before, q = memory
        loss, here, stats = gradient(task)(key, y, batch)
        q = tree.add(q, tree.sub(here, gradient_at(task, before, key, batch)))
        return loss, q, stats, (y, q)

    y, _, loss = descend_with(plan, x, (x, q), direction, optimizer)
    return y, loss


def mean_difference(plan: Batches, task: Task, x: Tree, before: Tree) -> Tree:
    """The mean over the batches of grad F(x; b) - grad F(before; b); zero where there are none."""

    def step(t, key, batch, total):
        return tree.add(total, tree.sub(gradient_at(task, x, key, batch), gradient_at(task, before, key, batch)))

    return tree.scale(1 / jnp.maximum(plan.steps, 1), loop(plan, tree.zeros_like(x), step))
