"""Number, mean and covariance of the features of every class, pooled exactly."""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.types import Streaming


class Moments(NamedTuple):
    """number [C], mean [C, F] and covariance [C, F, F] (divided by the number, not by one less); zeros for a class without examples."""

    number: jax.Array
    mean: jax.Array
    cov: jax.Array


def of(z: jax.Array, y: jax.Array, mask: jax.Array, classes: int) -> Moments:
    """The Moments of features z [B, F] with labels y [B], where the mask [B] holds."""
    chosen = ((y[:, None] == jnp.arange(classes)) & mask[:, None]).astype(z.dtype)
    number, z = chosen.sum(0), jnp.where(mask[:, None], z, 0)
    each = jnp.maximum(number, 1)
    mean = chosen.T @ z / each[:, None]
    off = z - chosen @ mean
    return Moments(number, mean, jnp.einsum("bc,bd,be->cde", chosen, off, off) / each[:, None, None])


def merged(a: Moments, b: Moments) -> Moments:
    """The Moments of what both are of."""
    number = a.number + b.number
    share = b.number / jnp.maximum(number, 1)
    off, half = b.mean - a.mean, share[:, None, None]
    between = half * (1 - half) * off[:, :, None] * off[:, None]
    return Moments(number, a.mean + share[:, None] * off, a.cov + half * (b.cov - a.cov) + between)


def pooled() -> Streaming:
    """The Moments of all examples of those who were heard, whatever their weight."""

    def add(acc, value, weight):
        return merged(acc, jax.tree.map(lambda x: jnp.where(weight == 0, 0, x), value))

    return Streaming(lambda value, weight: tree.zeros_like(value), add, merged, lambda acc: acc)
