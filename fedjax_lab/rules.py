"""The rules every method has: the weighted mean, the plain total, and the wire that changes nothing."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lab.types import Stacked, Streaming, Tree, Wire


def spread(weight: Any, value: Tree) -> Tree:
    """A weight (scalar, or tree prefix of value) as a tree of arrays that broadcast against value's leaves."""
    def one(w, sub):
        return jax.tree.map(lambda _: jnp.asarray(w), sub)
    return jax.tree.map(one, weight, value)


def _wide(dtype) -> jnp.dtype:
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def _weighted(acc: Tree, value: Tree, weight: Tree) -> Tree:
    # a weight of zero silences even NaN: padding and the unheard may hold anything
    return jax.tree.map(lambda a, v, w: a + jnp.where(w == 0, 0, w * v.astype(a.dtype)), acc, value, weight)


def mean() -> Streaming:
    """The weighted mean of what was heard, entry by entry where weights are; zero where nothing was.

    >>> rule, one, two = mean(), jnp.array([1.0, 3.0]), jnp.array([5.0, 5.0])
    >>> acc = rule.add(rule.zero(one, jnp.float32(1)), one, jnp.float32(1))
    >>> rule.finish(rule.add(acc, two, jnp.float32(3))).tolist()
    [4.0, 4.5]
    """

    def zero(value, weight):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), value), jax.tree.map(jnp.zeros_like, weight)

    def add(acc, value, weight):
        total, heard = acc
        return _weighted(total, value, spread(weight, value)), jax.tree.map(lambda h, w: h + w, heard, weight)

    def merge(a, b):
        return jax.tree.map(jnp.add, a, b)

    def finish(acc):
        total, heard = acc

        def divided(t, h):
            h = h.astype(t.dtype)
            # the reciprocal is written out: the compiler replaces a division by a scalar in some programs and not in others
            return t * jnp.where(h == 0, 0, 1 / jnp.where(h == 0, 1, h))

        return jax.tree.map(divided, total, spread(heard, total))

    return Streaming(zero, add, merge, finish)


def total() -> Streaming:
    """The weighted sum, not divided.

    >>> rule, one = total(), jnp.array([1.0, 3.0])
    >>> rule.finish(rule.add(rule.zero(one, jnp.float32(1)), one, jnp.float32(3))).tolist()
    [3.0, 9.0]
    """

    def zero(value, weight):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), value)

    def add(acc, value, weight):
        return _weighted(acc, value, spread(weight, value))

    return Streaming(zero, add, lambda a, b: jax.tree.map(jnp.add, a, b), lambda acc: acc)


def stacked(rule: Streaming | Stacked) -> Stacked:
    """A rule of any kind as one that sees all uploads at once; a streaming one adds them up one after the other.

    >>> two = jnp.array([[1.0, 3.0], [5.0, 5.0]])
    >>> stacked(mean()).combine(two, jnp.array([1.0, 3.0]), None).tolist()
    [4.0, 4.5]
    """
    if isinstance(rule, Stacked):
        return rule

    def combine(stack, weight, cohort):
        zero = rule.zero(*jax.tree.map(lambda x: jnp.zeros_like(x[0]), (stack, weight)))
        return rule.finish(jax.lax.scan(lambda acc, one: (rule.add(acc, *one), None), zero, (stack, weight))[0])

    return Stacked(combine)


def value_bits(value: Tree) -> int:
    """Bits of a tree as it is stored."""
    return sum(leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(value))


def identity() -> Wire:
    """Every entry as it is.

    >>> wire = identity()
    >>> code, row = wire.encode(jax.random.key(0), {"w": jnp.zeros(3, jnp.float32)}, ())
    >>> wire.bits(code), row
    (96, ())
    """
    return Wire(init=lambda field: (), encode=lambda key, value, row: (value, row), decode=lambda code: code, bits=value_bits)
