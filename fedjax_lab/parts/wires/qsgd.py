"""Stochastic uniform quantization.

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017.

    Q(x)_j = ||x|| sign(x_j) l_j / s,   l_j = floor(r_j) + [uniform < r_j - floor(r_j)],   r_j = s |x_j| / ||x||

in buckets with a norm each. E Q(x) = x, and E ||Q(x) - x||^2 <= min(n / s^2, sqrt(n) / s) ||x||^2 for a bucket of n entries.
A norm takes 32 bits, an entry 1 + ceil(log2(s + 1)); the paper's Elias code of the levels, shorter where most are zero, is not here.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Wire

PAPER = "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding"


class Levels(NamedTuple):
    """norms [b] of the buckets, signed levels [b, bucket], the shape and dtype of the array."""

    norms: jax.Array
    levels: codes.Packed
    form: codes.Form


@part(kind="wire", family="communication", paper=PAPER, year=2017)
def qsgd(levels: Count = 15, *, bucket: Annotated[int, Range(0)] = 512, norm: Literal["l2", "max"] = "l2") -> Wire:
    """Every entry rounded at random, without bias, to one of a few levels of its bucket's norm.

    Args:
      levels: s, levels above zero: 1 is ternary, 15 takes 5 bits with the sign, 255 takes 9.
      bucket: entries that share a norm; 0 for one norm per array of the model.
      norm: what the levels are fractions of; max wastes none, l2 is the paper's.
    """
    integer = jnp.int8 if levels < 2**7 else jnp.int16 if levels < 2**15 else jnp.int32

    def one(key, x):
        width = min(bucket or x.size, max(x.size, 1))
        padded = jnp.pad(x.reshape(-1), (0, -x.size % width)).reshape(-1, width)
        size = jnp.sqrt(jnp.sum(padded**2, 1)) if norm == "l2" else jnp.max(jnp.abs(padded), 1)
        ratio = levels * jnp.abs(padded) / jnp.where(size > 0, size, 1)[:, None]
        low = jnp.floor(ratio)
        up = jax.random.uniform(key, padded.shape) < ratio - low
        signed = (jnp.sign(padded) * jnp.minimum(low + up, levels)).astype(integer)
        entries = codes.Packed(signed.reshape(-1)[: x.size], 1 + codes.index_bits(levels + 1))
        return Levels(size, entries, codes.Form((x.shape, x.dtype, width)))

    def back(code):
        shape, dtype, width = code.form.facts
        scale = jnp.repeat(code.norms, width)[: code.levels.values.size]
        return (scale * code.levels.values / levels).reshape(shape).astype(dtype)

    def encode(key, value, row):
        return [one(keys.purpose(key, str(i)), x) for i, x in enumerate(value)], row

    return codes.on_moving(Wire(lambda field: (), encode, lambda code: [back(c) for c in code], codes.bits_of))
