"""Who stands apart among S points, of which some are there: by density, by two means, by the largest gap. From distances alone."""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

TURNS = 10  # of 2-means


def gap(values: jax.Array, there: jax.Array) -> jax.Array:
    """The middle of the largest gap between values [S] that are there; NaN, which nothing is above or below, of fewer than two."""
    count, v = jnp.sum(there), jnp.sort(jnp.where(there, values, jnp.inf))
    inside = jnp.arange(v.shape[0] - 1) < count - 1
    at = jnp.argmax(jnp.where(inside, v[1:] - v[:-1], -1)) if v.shape[0] > 1 else 0
    return jnp.where(count > 1, (v[at] + v[jnp.minimum(at + 1, v.shape[0] - 1)]) / 2, jnp.nan)


def density(distance: jax.Array, there: jax.Array, reach: jax.Array, least: int) -> jax.Array:
    """int32 [S]: DBSCAN's cluster of each point by its first member of the core, -1 for none.

    Args:
      distance: [S, S], symmetric with zeros on the diagonal.
      there: bool [S].
      reach: how far neighbors are at most.
      least: neighbors of a core point, itself among them.
    """
    near = there[:, None] & there[None] & (distance <= reach)
    core = jnp.sum(near, 1) >= least
    linked = near & core[:, None] & core[None]
    for _ in range(math.ceil(math.log2(max(len(there), 2)))):
        linked = linked.astype(jnp.float32) @ linked.astype(jnp.float32) > 0
    of_core = jnp.where(core, jnp.argmax(linked, 1), len(there))
    nearest = jnp.min(jnp.where(near & core[None], of_core[None], len(there)), 1)
    return jnp.where(nearest < len(there), nearest, -1).astype(jnp.int32)


def largest(labels: jax.Array) -> jax.Array:
    """bool [S]: the members of the largest cluster; nobody where there is none."""
    sizes = jnp.sum(labels[None] == jnp.arange(len(labels))[:, None], 1)
    return (labels == jnp.argmax(sizes)) & (labels >= 0)


def smaller_half(squared: jax.Array, there: jax.Array) -> jax.Array:
    """bool [S]: the smaller cluster of 2-means from the farthest pair; nobody where both are of one size.

    squared: [S, S] squared distances.
    """
    pairs = there[:, None] & there[None]
    d = jnp.where(pairs, squared, 0)
    i, j = jnp.divmod(jnp.argmax(jnp.where(pairs, d, -1)), len(there))

    def to_center(side):
        share = side / jnp.maximum(jnp.sum(side), 1)
        return d @ share - share @ d @ share / 2

    def turn(_, first):
        return there & (to_center(first) <= to_center(there & ~first))

    first = jax.lax.fori_loop(0, TURNS, turn, there & (d[:, i] <= d[:, j]))
    one, two = jnp.sum(first), jnp.sum(there & ~first)
    return jnp.where(one < two, first, there & ~first) & (one != two)


__all__ = ["density", "gap", "largest", "smaller_half"]
