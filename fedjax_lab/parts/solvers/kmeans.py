"""K-means: rows in clusters of least squared distance to their means."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Key


def kmeans(key: Key, x: jax.Array, clusters: int, steps: int) -> jax.Array:
    """int32 [n]: the cluster of each row of x [n, d], after Lloyd's iterations from k-means++ centers (Arthur, Vassilvitskii, SODA 2007).

    A center without rows stays where it is.

    Args:
      clusters: how many;  steps: Lloyd's iterations.

    >>> found = kmeans(jax.random.key(0), jnp.array([[0.0], [9.0], [0.1], [9.1]]), 2, 5)
    >>> bool(found[0] == found[2]) and bool(found[1] == found[3]) and bool(found[0] != found[1])
    True
    """

    def grown(c, carry):
        centers, near = carry
        at = jnp.argmax(jnp.log(near) + jax.random.gumbel(jax.random.fold_in(key, c), near.shape, x.dtype))
        return centers.at[c].set(x[at]), jnp.minimum(near, jnp.sum((x - x[at]) ** 2, 1))

    def nearest(centers):
        return jnp.argmin(jnp.sum((x[:, None] - centers) ** 2, -1), 1).astype(jnp.int32)

    def moved(_, centers):
        member = jax.nn.one_hot(nearest(centers), clusters, dtype=x.dtype)
        count = jnp.sum(member, 0)[:, None]
        return jnp.where(count > 0, member.T @ x / jnp.maximum(count, 1), centers)

    far = jnp.finfo(x.dtype).max + 0 * jnp.sum(x, 1)
    centers, _ = jax.lax.fori_loop(0, clusters, grown, (jnp.zeros((clusters, x.shape[1]), x.dtype) + 0 * x[0], far))
    return nearest(jax.lax.fori_loop(0, steps, moved, centers))
