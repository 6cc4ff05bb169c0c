"""Algebra on what a gradient moves; normalization statistics ride along, averaged and otherwise left alone."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lab import rules, tree
from fedjax_lab.types import Streaming, Tree


def moving(change: Tree) -> Tree:
    """The change, with zeros in the leaves that no gradient moves: what duals and control variates may remember."""
    return jax.tree.map(lambda moves, x: x if moves else jnp.zeros_like(x), tree.trainable(change), change)


def scaled(a: Any, change: Tree) -> Tree:
    """a times the change, but for the leaves that no gradient moves."""
    return jax.tree.map(lambda moves, x: a * x if moves else x, tree.trainable(change), change)


def stepped(a: Any, change: Tree, params: Tree) -> Tree:
    """params + a change, where statistics take the whole change whatever a is."""
    return tree.axpy(1, scaled(a, change), params)


def summed() -> Streaming:
    """The weighted sum of changes, where statistics are averaged all the same."""
    mean = rules.mean()

    def finish(acc):
        total, average = acc[0], mean.finish(acc)
        return jax.tree.map(lambda moves, t, a: t if moves else a, tree.trainable(total), total, average)

    return mean._replace(finish=finish)
