"""Several models on one server: who belongs to which, and their means apart."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Streaming, Tree


def by_cluster() -> Streaming:
    """The weighted mean of each cluster, as (means [K, ...], weights [K]); zero where a cluster was not heard.

    An upload's weight is a vector [K], zero but for the cluster that it belongs to.
    """

    def one(weight, x):
        return weight.reshape(-1, *[1] * x.ndim)

    def zero(value, weight):
        return jax.tree.map(lambda x: jnp.zeros((*weight.shape, *x.shape), x.dtype), value), jnp.zeros_like(weight)

    def add(acc, value, weight):
        total, heard = acc
        return jax.tree.map(lambda t, x: t + jnp.where(one(weight, x) == 0, 0, one(weight, x) * x), total, value), heard + weight

    def finish(acc):
        total, heard = acc
        return jax.tree.map(lambda t: t * one(jnp.where(heard == 0, 0, 1 / jnp.where(heard == 0, 1, heard)), t[0]), total), heard

    return Streaming(zero, add, lambda a, b: jax.tree.map(jnp.add, a, b), finish)


def pick(models: Tree, k: jax.Array) -> Tree:
    """Model k of a stack [K, ...]."""
    return jax.tree.map(lambda x: x[k], models)
