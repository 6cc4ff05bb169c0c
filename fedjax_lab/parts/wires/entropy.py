"""Streams of labels 0, 1 and 2 as bits, 0 being the commonest: what a code takes, in jit, and the bits themselves, on the host.

    huffman   0 -> 0, 1 -> 10, 2 -> 11
    address   of labels 1 and of labels 2: how many there are, then ceil(log2 n) bits for each place
    gaps      of labels 1 and of labels 2: how many there are, then the steps from one place to the next

Numbers g >= 1 are in Elias' gamma code, 2 floor(log2 g) + 1 bits, and a count is told as count + 1. Two bits say which code it is.
"""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CODES = ("huffman", "address", "gaps")
TAG = 2


def sizes(labels: jax.Array) -> jax.Array:
    """int32 [3]: bits that labels [n] take in each of CODES, without the tag."""
    n = labels.size
    rare = jnp.stack([labels == 1, labels == 2])
    count = jnp.sum(rare, 1, dtype=jnp.int32)
    at = jnp.where(rare, jnp.arange(n, dtype=jnp.int32), -1)
    before = jnp.concatenate([jnp.full((2, 1), -1, jnp.int32), jax.lax.cummax(at, axis=1)[:, :-1]], 1)
    gaps = jnp.sum(jnp.where(rare, _gamma_bits(jnp.where(rare, at - before, 1)), 0))
    told = jnp.sum(_gamma_bits(count + 1))
    return jnp.stack([n + jnp.sum(count), told + place_bits(n) * jnp.sum(count), told + gaps])


def place_bits(n: int) -> int:
    """ceil(log2 n)."""
    return max(n - 1, 0).bit_length()


def _gamma_bits(g: jax.Array) -> jax.Array:
    return 2 * (31 - jax.lax.clz(g.astype(jnp.int32))) + 1


def write(labels: np.ndarray, code: str) -> str:
    """The labels [n] in one of CODES, as a text of 0 and 1, tag first."""
    found = [np.flatnonzero(labels == s) for s in (1, 2)]
    if code == "huffman":
        body = "".join(("0", "10", "11")[s] for s in labels)
    elif code == "address":
        width = place_bits(len(labels))
        body = "".join(_gamma(len(at) + 1) + "".join(f"{p:b}".zfill(width)[:width] if width else "" for p in at) for at in found)
    else:
        body = "".join(_gamma(len(at) + 1) + "".join(map(_gamma, np.diff(at, prepend=-1))) for at in found)
    return f"{CODES.index(code):0{TAG}b}" + body


def read(bits: str, n: int) -> np.ndarray:
    """The n labels that `write` wrote."""
    code, stream, labels = CODES[int(bits[:TAG], 2)], iter(bits[TAG:]), np.zeros(n, np.int8)
    if code == "huffman":
        return np.array([0 if next(stream) == "0" else 1 + int(next(stream)) for _ in range(n)], np.int8)
    for s in (1, 2):
        at = -1
        for _ in range(_ungamma(stream) - 1):
            at = _number(stream, place_bits(n)) if code == "address" else at + _ungamma(stream)
            labels[at] = s
    return labels


def _gamma(g: Any) -> str:
    digits = f"{int(g):b}"
    return "0" * (len(digits) - 1) + digits


def _ungamma(stream) -> int:
    zeros = 0
    while next(stream) == "0":
        zeros += 1
    return int("1" + "".join(next(stream) for _ in range(zeros)), 2)


def _number(stream, width: int) -> int:
    return int("0" + "".join(next(stream) for _ in range(width)), 2)
