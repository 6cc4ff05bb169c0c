"""Sparse wires: the largest entries, or random ones.

Top-k with error feedback: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018. u = e + value; the k entries of
largest |u| are sent as (value, index), k (32 + ceil(log2 d)) bits, and e <- u - sent.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.spec import Range, Share
from fedjax_lab.types import Wire

PAPER = "Sparsified SGD with Memory"
Kept = Annotated[float, Range(0, 1, open="low")]


class Sparse(NamedTuple):
    """values [k] at the places `indices` [k] of a vector of form.facts entries."""

    values: jax.Array
    indices: codes.Packed
    form: codes.Form


def _count(share: float, entries: int) -> int:
    return max(1, round(share * entries))


def _dense(code: Sparse) -> jax.Array:
    return jnp.zeros(code.form.facts, code.values.dtype).at[code.indices.values].set(code.values)


@part(kind="wire", family="communication", paper=PAPER, year=2018, stateful=True)
def topk(share: Kept = 0.01, *, scope: Literal["global", "leaf"] = "global", memory: bool = True, decay: Share = 1.0) -> Wire:
    """The largest entries of a change, the rest remembered for next time.

    Args:
      share: of the entries that is sent, at least one.
      scope: the largest of the whole model, or of each of its arrays.
      memory: keep what was not sent and add it to what is sent next (error feedback).
      decay: share of the memory that is left when the client takes part again; below 1 it forgets what has become stale.
    """

    def one(vector):
        _, indices = jax.lax.top_k(jnp.abs(vector), _count(share, vector.size))
        return Sparse(vector[indices], codes.Packed(indices, codes.index_bits(vector.size)), codes.Form(vector.size))

    def encode(key, value, row):
        flat = [codes.ravel(piece) for piece in (value if scope == "leaf" else [value])]
        return ([one(vector) for vector, _ in flat], [form for _, form in flat]), row

    def decode(code):
        pieces = [codes.unravel(_dense(sparse), form) for sparse, form in zip(*code, strict=True)]
        return pieces if scope == "leaf" else pieces[0]

    wire = Wire(lambda field: (), encode, decode, codes.bits_of)
    return codes.on_moving(codes.remembered(wire, decay) if memory else wire)


@part(kind="wire", family="communication", paper=PAPER, year=2018)
def randk(share: Kept = 0.01) -> Wire:
    """Random entries of a change, scaled up so that their mean is the change; the places are told by a 32-bit seed.

    Args:
      share: of the entries that is sent, at least one.
    """

    def encode(key, value, row):
        vector, form = codes.ravel(value)
        k = _count(share, vector.size)
        indices = keys.shuffle(key, jnp.arange(k, dtype=jnp.int32), vector.size)
        sparse = Sparse(vector[indices] * (vector.size / k), codes.Packed(indices, 0), codes.Form(vector.size))
        return (sparse, codes.Packed(jnp.zeros((), jnp.uint32), 32), form), row

    return codes.on_moving(Wire(lambda field: (), encode, lambda code: codes.unravel(_dense(code[0]), code[2]), codes.bits_of))
