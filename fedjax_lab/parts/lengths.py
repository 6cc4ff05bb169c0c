"""Vectors of a given length: what feature normalization is made of."""
from __future__ import annotations

import jax
import jax.numpy as jnp


def unit(h: jax.Array) -> jax.Array:
    """h [B, ...] divided by its norm, example by example, over all axes but the first; zero, and without slope, where h is zero."""
    square = jnp.sum(h * h, tuple(range(1, h.ndim)), keepdims=True)
    return h * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
