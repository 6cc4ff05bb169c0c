"""0-1 knapsacks, by the greedy rule."""
from __future__ import annotations

import jax
import jax.numpy as jnp


def greedy(value: jax.Array, size: jax.Array, capacity: jax.Array) -> jax.Array:
    """bool [L]: items taken in the order of value / size, the first of equals first, each if it still fits.

    Args:
      value: [L];  size: int32 [L], above zero;  capacity: int32 scalar.

    >>> greedy(jnp.array([6.0, 5.0, 5.0]), jnp.array([3, 2, 2]), jnp.int32(4)).tolist()
    [False, True, True]
    """

    def take(left, item):
        fits = size[item] <= left
        return left - jnp.where(fits, size[item], 0), fits

    order = jnp.argsort(-value / size, stable=True)
    _, fits = jax.lax.scan(take, jnp.asarray(capacity, size.dtype) + 0 * size[0], order)
    return jnp.zeros(value.shape, bool).at[order].set(fits)
