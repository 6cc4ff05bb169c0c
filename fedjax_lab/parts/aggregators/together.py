"""No aggregation: the server gets every upload."""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.types import Stacked, Tree


class Stack(NamedTuple):
    """All uploads of a field [S, ...] in the cohort's order, and their weights [S]; zeros where nothing was heard."""

    uploads: Tree
    weights: jax.Array

    @property
    def shares(self) -> jax.Array:
        """The weights [S], summing to one; zeros where nobody was heard."""
        return self.weights / jnp.maximum(jnp.sum(self.weights), jnp.finfo(jnp.float32).tiny)

    @property
    def empty(self) -> jax.Array:
        """Whether nobody was heard."""
        return ~jnp.any(self.weights > 0)

    def mixed(self, shares: jax.Array) -> Tree:
        """The sum of the uploads, weighted by shares [S]."""
        return jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), self.uploads)


def together() -> Stacked:
    """Hands the server a Stack of the field."""

    def combine(stack, weights, cohort):
        def heard(x):
            return jnp.where((weights > 0).reshape(-1, *[1] * (x.ndim - 1)), x, 0)

        return Stack(jax.tree.map(heard, stack), weights)

    return Stacked(combine)
