"""What wires have in common: codes whose size can be read off, error memory, and chains.

A code is a pytree of arrays. An array counts with the bits of its dtype, a `Packed` array with the bits it says; what is static
(shapes, dtypes, the order of leaves) is known to both ends and costs nothing. Wires that lose something act on the floating-point
leaves that a gradient moves; statistics and integers pass as they are (`on_moving`).
"""
from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.types import Tree, Wire


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["bits"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """An array of which every entry takes `bits` bits; a later wire of a chain leaves it alone."""

    values: jax.Array
    bits: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Form:
    """What both ends know without being told."""

    facts: Any


def _packed(leaf: Any) -> bool:
    return isinstance(leaf, Packed)


def bits_of(code: Tree) -> int:
    """The size of a code."""
    leaves = jax.tree.leaves(code, is_leaf=_packed)
    return sum(x.values.size * x.bits if _packed(x) else x.size * x.dtype.itemsize * 8 for x in leaves)


def opened(code: Tree) -> Tree:
    """The arrays of a code, without what is said of their bits."""
    return jax.tree.map(lambda leaf: leaf.values if _packed(leaf) else leaf, code, is_leaf=_packed)


def seal(array: jax.Array) -> Packed:
    """The array as it is, out of reach of later wires."""
    return Packed(array, array.dtype.itemsize * 8)


def index_bits(entries: int) -> int:
    """Bits that tell one of so many entries: ceil(log2 entries), at least one."""
    return max(1, (entries - 1).bit_length())


def ravel(value: Tree) -> tuple[jax.Array, Form]:
    """All entries in one vector, and how to put them back."""
    leaves, structure = jax.tree.flatten(value)
    vector = jnp.concatenate([x.reshape(-1) for x in leaves]) if leaves else jnp.zeros(0, jnp.float32)
    return vector, Form((structure, tuple((x.shape, x.dtype) for x in leaves)))


def unravel(vector: jax.Array, form: Form) -> Tree:
    """The inverse of `ravel`."""
    structure, kinds = form.facts
    leaves, at = [], 0
    for shape, dtype in kinds:
        count = math.prod(shape)
        leaves.append(vector[at : at + count].reshape(shape).astype(dtype))
        at += count
    return jax.tree.unflatten(structure, leaves)


def on_moving(wire: Wire) -> Wire:
    """The wire, acting on the floating-point leaves that a gradient moves, handed to it as a list; the others pass whole."""

    def parts(value):
        leaves, structure = jax.tree.flatten(value)
        moves = [bool(m) and jnp.issubdtype(x.dtype, jnp.inexact) for m, x in zip(jax.tree.leaves(tree.trainable(value)), leaves, strict=True)]
        return leaves, structure, moves

    def chosen(value):
        leaves, _, moves = parts(value)
        return [x for x, m in zip(leaves, moves, strict=True) if m]

    def encode(key, value, row):
        leaves, structure, moves = parts(value)
        code, row = wire.encode(key, chosen(value), row)
        return (code, [seal(x) for x, m in zip(leaves, moves, strict=True) if not m], Form((structure, tuple(moves)))), row

    def decode(code):
        inner, others, form = code
        structure, moves = form.facts
        moving, still = iter(wire.decode(inner)), (p.values for p in others)
        return jax.tree.unflatten(structure, [next(moving) if m else next(still) for m in moves])

    return Wire(lambda field: wire.init(chosen(field)), encode, decode, lambda code: wire.bits(code[0]) + bits_of(code[1]))


def remembered(wire: Wire, decay: Any = 1.0) -> Wire:
    """The wire with error feedback: what was not sent is added to what is sent next, u = decay e + value, e <- u - sent."""

    def init(field):
        return tree.zeros_like(field), wire.init(field)

    def encode(key, value, row):
        error, inner = row
        wanted = tree.axpy(decay, error, value)
        code, inner = wire.encode(key, wanted, inner)
        return code, (tree.sub(wanted, wire.decode(code)), inner)

    return Wire(init, encode, wire.decode, wire.bits)


def chain(*wires: Wire) -> Wire:
    """The wires one after the other: each codes the floating-point arrays that the code before it holds."""
    return functools.reduce(_then, wires)


def _then(first: Wire, second: Wire) -> Wire:
    def bare(leaf):
        return not _packed(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)

    def split(code):
        leaves, structure = jax.tree.flatten(code, is_leaf=_packed)
        floats = tuple(bare(x) for x in leaves)
        kept = [x if _packed(x) else seal(x) for x, f in zip(leaves, floats, strict=True) if not f]
        packed = tuple(_packed(x) for x in leaves)
        return [x for x, f in zip(leaves, floats, strict=True) if f], kept, Form((structure, floats, packed))

    def init(field):
        row = first.init(field)
        return row, second.init(split(first.encode(jax.random.key(0), field, row)[0])[0])

    def encode(key, value, row):
        code, one = first.encode(keys.purpose(key, "first"), value, row[0])
        floats, kept, form = split(code)
        outer, two = second.encode(keys.purpose(key, "then"), floats, row[1])
        return (outer, kept, form), (one, two)

    def decode(code):
        outer, kept, form = code
        structure, floats, packed = form.facts
        moving, still = iter(second.decode(outer)), iter(kept)
        leaves = [next(moving) if f else (next(still) if p else next(still).values) for f, p in zip(floats, packed, strict=True)]
        return first.decode(jax.tree.unflatten(structure, leaves))

    return Wire(init, encode, decode, lambda code: second.bits(code[0]) + bits_of(code[1]))
