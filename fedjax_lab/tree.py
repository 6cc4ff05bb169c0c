"""Algebra on pytrees, where optax.tree and jax.tree do not have the word."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_lab.types import Tree

add, sub, scale, zeros_like = optax.tree.add, optax.tree.sub, optax.tree.scale, optax.tree.zeros_like
norm, vdot = optax.tree.norm, optax.tree.vdot


def axpy(a: jax.Array | float, x: Tree, y: Tree) -> Tree:
    """a x + y, leaf by leaf, in y's dtypes.

    >>> axpy(2.0, {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([10.0, 10.0])})["w"].tolist()
    [12.0, 14.0]
    """
    return jax.tree.map(lambda x, y: (a * x + y).astype(y.dtype), x, y)


def select(keep: jax.Array, x: Tree, y: Tree) -> Tree:
    """x where the scalar `keep` holds, y elsewhere; both of one structure, with the same shapes.

    >>> select(jnp.bool_(False), {"w": jnp.ones(2)}, {"w": jnp.zeros(2)})["w"].tolist()
    [0.0, 0.0]
    """
    return jax.tree.map(lambda x, y: jnp.where(keep, x, y), x, y)


def size(tree: Tree) -> int:
    """Number of entries of all leaves of `tree`.

    >>> size({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves of `tree` (arrays or shapes).

    >>> nbytes({"w": jnp.zeros((2, 3), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.int8)})
    27
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def strong(tree: Tree) -> Tree:
    """The values of `tree`, strongly typed: a weakly typed first state would mean a second trace.

    >>> jnp.asarray(1.0).weak_type, strong(jnp.asarray(1.0)).weak_type
    (True, False)
    """
    return jax.tree.map(lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(x, x.dtype), tree)


def finite(tree: Tree) -> jax.Array:
    """Whether the sum of all entries of `tree` is finite, a bool scalar: one pass, and NaN or infinity anywhere shows.

    >>> bool(finite({"w": jnp.array([1.0, jnp.nan]), "b": jnp.zeros(3)}))
    False
    """
    leaves = [jnp.sum(x, dtype=jnp.float32) for x in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.isfinite(sum(leaves, jnp.float32(0)))


def trainable(params: Tree) -> Tree:
    """True for the leaves that a gradient moves: all but the sub-trees "stats" and "frozen" at the top of params.

    >>> trainable({"params": {"w": jnp.zeros(2)}, "stats": {"mean": jnp.zeros(2)}})
    {'params': {'w': True}, 'stats': {'mean': False}}
    """
    if not isinstance(params, dict):
        return jax.tree.map(lambda _: True, params)
    return {k: jax.tree.map(lambda _, moves=k not in ("stats", "frozen"): moves, v) for k, v in params.items()}
