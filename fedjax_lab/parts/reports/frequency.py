"""Frequency oracles under local differential privacy: users hold one value of 0 .. d-1 each, and a report of each gives unbiased counts.

    (1)  krr: the value itself with p = e^eps / (e^eps + d - 1), each other one with q = 1 / (e^eps + d - 1)
    (2)  oue: d bits, the value's with p = 1/2, each other one with q = 1 / (e^eps + 1)
    (3)  olh: krr of the value's hash among g = round(e^eps) + 1;  it speaks for a value with p = e^eps / (e^eps + g - 1), of others with q = 1/g
    (4)  n_v = (C_v - n q) / (p - q),  C_v of n reports speak for v;  its deviation is sqrt(n q (1 - q)) / (p - q) for a rare value

Wang, Blocki, Li, Jha, "Locally Differentially Private Protocols for Frequency Estimation", USENIX Security 2017. d may be traced: values are
below a static width D, and nothing is reported of those from d on.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.types import Key

Name = Literal["krr", "oue", "olh"]


class Frequency(NamedTuple):
    """One oracle at one epsilon.

    width: D.   report: (key, value, d) -> what one user sends.   speaks: (report) -> bool [D], for which values.
    p, q: (d) -> how often a report speaks for the user's own value, and for another one.   bits: (d) -> the size of a report.
    """

    width: int
    report: Callable[[Key, jax.Array, jax.Array], Any]
    speaks: Callable[[Any], jax.Array]
    p: Callable[[Any], Any]
    q: Callable[[Any], Any]
    bits: Callable[[int], int]

    def counts(self, reports: Any, heard: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(n_v [D], their deviation) of (4) from reports [n, ...], of which those heard count; a value from d on has no users."""
        support = jnp.sum(jax.vmap(self.speaks)(reports) & heard[:, None], 0)
        n, p, q = jnp.sum(heard), self.p(d), self.q(d)
        return jnp.where(jnp.arange(self.width) < d, (support - n * q) / (p - q), 0), jnp.sqrt(n * q * (1 - q)) / (p - q)


@functools.cache
def frequency(name: Name, eps: float, width: int) -> Frequency:
    """The oracle of that name for values below `width`."""
    rest, values = math.exp(-eps), np.arange(width)

    def p_of(d):
        return 1 / (1 + (d - 1) * rest)

    def randomized(key, value, d):
        keep, other = jax.random.uniform(key) < p_of(d), jax.random.randint(jax.random.fold_in(key, 1), (), 0, jnp.maximum(d - 1, 1))
        return jnp.where(keep | (d < 2), value, other + (other >= value))

    if name == "krr":  # (1)
        return Frequency(width, randomized, lambda r: r == values, p_of, lambda d: rest * p_of(d), lambda d: (d - 1).bit_length())
    if name == "oue":  # (2)
        q = rest / (1 + rest)

        def bits(key, value, d):
            return (jax.random.uniform(key, (width,)) < jnp.where(values == value, 0.5, q)) & (values < d)

        return Frequency(width, bits, lambda r: r, lambda d: 0.5, lambda d: q, lambda d: d)
    g = round(math.exp(min(eps, 10))) + 1

    def hashed(seed):
        return jax.random.randint(jax.random.wrap_key_data(seed), (width,), 0, g)

    def local_hash(key, value, d):
        seed = jax.random.key_data(jax.random.fold_in(key, 2))
        return seed, randomized(key, hashed(seed)[value], g)

    return Frequency(width, local_hash, lambda r: hashed(r[0]) == r[1], lambda d: p_of(g), lambda d: 1 / g, lambda d: 64 + (g - 1).bit_length())  # (3)


__all__ = ["Frequency", "Name", "frequency"]
