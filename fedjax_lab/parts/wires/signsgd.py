"""One bit an entry.

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018, and with scale and
error feedback Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD", ICML 2019: sends (||u||_1 / d) sign(u), u = e + value.
Majority vote is scale=none with the aggregator `vote`.
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.types import Wire

PAPER = "signSGD: Compressed Optimisation for Non-Convex Problems"


@part(kind="wire", family="communication", paper=PAPER, year=2018, stateful=True)
def signsgd(scale: Literal["global", "leaf", "none"] = "global", *, memory: bool = True) -> Wire:
    """The signs of a change, with the mean of its absolute values.

    Args:
      scale: one mean for the whole model, one for each of its arrays, or none, which sends +1 and -1.
      memory: keep what was not sent and add it to what is sent next (error feedback).
    """

    def one(key, piece):
        vector, form = codes.ravel(piece)
        plus = jnp.where(vector == 0, jax.random.bernoulli(key, shape=vector.shape), vector > 0)
        mean = jnp.sum(jnp.abs(vector)) / max(vector.size, 1)
        return codes.Packed(plus, 1), [] if scale == "none" else [mean], form

    def back(code):
        plus, mean, form = code
        size = mean[0] if mean else jnp.float32(1)
        return codes.unravel(jnp.where(plus.values, size, -size), form)

    def encode(key, value, row):
        pieces = value if scale == "leaf" else [value]
        return [one(jax.random.fold_in(key, i), piece) for i, piece in enumerate(pieces)], row

    def decode(code):
        pieces = [back(c) for c in code]
        return pieces if scale == "leaf" else pieces[0]

    wire = Wire(lambda field: (), encode, decode, codes.bits_of)
    return codes.on_moving(codes.remembered(wire) if memory else wire)
