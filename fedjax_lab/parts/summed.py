"""Sums of changes sum_i d_i u_i where the d_i need not add to one.

The field "model" stays the weighted mean, which rules, wires and attacks act on; the sum of the d_i comes beside it and costs nothing, since
the server knows every d_i. Where the d_i add to one the sum has the bits of the mean.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lab import rules
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.types import Method, Result, Tree


def summed(local: Callable[..., Result], *fields: str, **more: Any) -> Method:
    """A Method whose aggregate holds "d", the sum of the d_i; `fields` of the upload are known to the server and cost nothing either."""
    return Method(local, aggregate={"d": rules.total()}, up={"d": known(), **{f: known() for f in fields}}, **more)


def weighted(upload: Mapping[str, Tree], d: jax.Array, **more: Any) -> Result:
    """The upload with its weight d, a float32 scalar."""
    return Result({**upload, "d": d}, {**dict.fromkeys(upload, d), "d": jnp.float32(1)}, **more)


def shared(aggregate: Mapping[str, Tree], among: jax.Array) -> jax.Array:
    """sum_i d_i / among, float32 scalar."""
    return aggregate["d"] / jnp.maximum(among, 1)
