"""Geometry of a stack of uploads [S, ...] without flattening it: distances from one Gram matrix, sums, and who is there to be counted.

Distances are K_ii + K_jj - 2 K_ij of a Gram matrix K [S, S] around one upload that is near the others: around the origin, what uploads
have in common would cancel, and around their mean a single far one would spoil the rest.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Tree


def there(name: str, stack: Tree, weight: jax.Array, weights: str = "honored") -> tuple[Tree, jax.Array, jax.Array]:
    """(stack, present, weight): the uploads that count, zeros for the others.

    Present is who was heard with a finite upload; a client that sends NaN is not there.

    Args:
      name: of the rule, for the message;  stack: tree [S, ...];  weight: [S].
      weights: honored, or equal for 1 in place of every positive weight.

    Raises:
      ValueError: entries have weights of their own, so that no upload has one.
    """
    if not hasattr(weight, "ndim") or weight.ndim != 1:
        raise ValueError(f"aggregator '{name}' compares whole uploads: it needs one weight for each, and this method weighs their entries; "
                         "choose median or trimmed-mean")
    finite = sum(jnp.sum(jnp.abs(_rows(v)), 1) for v in jax.tree.leaves(stack))
    present = (jnp.asarray(weight) > 0) & jnp.isfinite(finite)
    kept = jax.tree.map(lambda v: jnp.where(_aside(present, v), v, 0), stack)
    return kept, present, jnp.where(present, jnp.ones(present.shape) if weights == "equal" else jnp.asarray(weight, jnp.float32), 0)


def distances(stack: Tree, present: jax.Array) -> jax.Array:
    """[S, S] squared distances between those present, infinite from and to the others, 0 from each to itself."""
    count = jnp.sum(present)

    def squared(stack):
        k = gram(stack)
        d = jnp.maximum(jnp.diag(k)[:, None] + jnp.diag(k)[None] - 2 * k, 0)
        return jnp.where(present[:, None] & present[None], d, jnp.inf)

    middle = jnp.sort(squared(stack), 1)[:, jnp.maximum(count - 1, 0) // 2]
    centered = jax.tree.map(lambda v: jnp.where(_aside(present, v), v - v[jnp.argmin(middle)], 0), stack)
    d = squared(centered)
    return jnp.where(jnp.eye(present.shape[0], dtype=bool), 0, (d + d.T) / 2)


def gram(stack: Tree) -> jax.Array:
    """[S, S] inner products."""
    return sum(jnp.matmul(_rows(v), _rows(v).T, precision="highest") for v in jax.tree.leaves(stack))


def norms(stack: Tree) -> jax.Array:
    """[S] lengths."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(_rows(v)), 1) for v in jax.tree.leaves(stack)))


def products(stack: Tree, point: Tree) -> jax.Array:
    """[S] inner products with a point, a tree without the leading axis."""
    pairs = zip(jax.tree.leaves(stack), jax.tree.leaves(point), strict=True)
    return sum(jnp.matmul(_rows(v), _rows(p[None])[0], precision="highest") for v, p in pairs)


def cosines(stack: Tree, point: Tree) -> jax.Array:
    """[S] cosines with a point, a tree without the leading axis; 0 with or of a zero."""
    length = norms(jax.tree.map(lambda p: p[None], point))[0]
    return products(stack, point) / jnp.maximum(norms(stack) * length, 1e-12)


def middle(stack: Tree, who: jax.Array) -> Tree:
    """The median of every coordinate over who [S] is meant, without the leading axis; zeros of nobody."""
    return jax.tree.map(lambda v: jnp.nan_to_num(jnp.nanmedian(jnp.where(_aside(who, v), v, jnp.nan), 0)), stack)


def distance_to(stack: Tree, point: Tree) -> jax.Array:
    """[S] distances to a point, a tree without the leading axis."""
    return norms(jax.tree.map(lambda v, p: v - p, stack, point))


def combined(by: jax.Array, stack: Tree) -> Tree:
    """by [S] @ stack, or by [T, S] @ stack -> [T, ...]."""
    return jax.tree.map(lambda v: jnp.tensordot(by.astype(v.dtype), v, 1, precision="highest"), stack)


def scaled(by: jax.Array, stack: Tree) -> Tree:
    """Every upload times its number, by [S]."""
    return jax.tree.map(lambda v: _aside(by, v).astype(v.dtype) * v, stack)


def shares(weight: jax.Array) -> jax.Array:
    """Weights [S] as shares of their sum, zeros where nobody is there."""
    return weight / jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)


def ranks(values: jax.Array) -> jax.Array:
    """Places 0, 1, ... of the entries along the last axis in ascending order; of equals the first comes first."""
    return jnp.argsort(jnp.argsort(values, -1), -1)


def _rows(v: jax.Array) -> jax.Array:
    return v.reshape(v.shape[0], -1).astype(jnp.promote_types(v.dtype, jnp.float32))


def _aside(by: jax.Array, v: jax.Array) -> jax.Array:
    return by.reshape(-1, *[1] * (v.ndim - 1))


__all__ = ["combined", "cosines", "distance_to", "distances", "gram", "middle", "norms", "products", "ranks", "scaled", "shares", "there"]
