"""Fields that are sent as they are, and how many bits they take where the receiver knows a part of them already."""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lab import rules
from fedjax_lab.types import Tree, Wire


def plain(bits: Callable[[Tree], jax.Array | int]) -> Wire:
    """The field as it is, which takes so many bits."""
    return Wire(lambda field: (), lambda key, value, row: (value, row), lambda code: code, bits)


def known() -> Wire:
    """Nothing: the receiver has the field already, as a server has what it received from this client before."""
    return plain(lambda code: 0)


def once() -> Wire:
    """The field when it is first sent; after that nothing, which arrives as zeros."""

    def encode(key, value, told):
        return (jax.tree.map(lambda x: jnp.where(told, 0, x), value), told), told | True

    return Wire(lambda field: jnp.zeros((), bool), encode, lambda code: code[0], lambda code: jnp.where(code[1], 0, rules.value_bits(code[0])))


def counted() -> Wire:
    """A whole number: how many bits another field takes, one that goes through `known` and has something sent of it all the same."""
    return plain(lambda code: code)


def rows_there() -> Wire:
    """The rows that are there, of (rows [K, ...], there bool [K]), where the receiver knows which these are."""
    return plain(lambda code: jnp.sum(code[1]) * (rules.value_bits(code[0]) // code[1].size))


def rows_unless_zero() -> Wire:
    """For each row of the leading axis one bit, and the row where an entry of it is not zero."""

    def bits(code):
        flat = jnp.concatenate([x.reshape(x.shape[0], -1) != 0 for x in jax.tree.leaves(code)], 1)
        told = jnp.sum(jnp.any(flat, 1))
        return flat.shape[0] + told * (rules.value_bits(code) // flat.shape[0])

    return plain(bits)


def nonzero() -> Wire:
    """The entries that are not zero, where the receiver knows which these are."""

    def bits(code):
        return sum(jnp.count_nonzero(x) * (8 * x.dtype.itemsize) for x in jax.tree.leaves(code))

    return plain(bits)


def columns_unless_zero() -> Wire:
    """The columns of matrices in which an entry is not zero, which are their first ones."""

    def bits(code):
        return sum(jnp.sum(jnp.any(x != 0, 0)) * (rules.value_bits(x) // x.shape[1]) for x in jax.tree.leaves(code))

    return plain(bits)


def in_use() -> Wire:
    """Of a model of several architectures (models/several.py), or its change, those that are in use or have changed."""

    def bits(code):
        moved = [jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(model)]).any() for model in code["models"]]
        used = jnp.where(jnp.any(code["which"] != 0), code["which"] > 0.5, jnp.stack(moved))
        return sum(jnp.where(used[i], rules.value_bits(model), 0) for i, model in enumerate(code["models"]))

    return plain(bits)


def unless_zero() -> Wire:
    """One bit, and the whole field only where an entry is not zero: for fields that clients of one role have nothing to say in."""

    def bits(code):
        told = jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(code)]).any()
        return 1 + jnp.where(told, rules.value_bits(code), 0)

    return plain(bits)
