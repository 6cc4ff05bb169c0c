"""What an upload is worth that comes s updates after its model was sent (Xie, Koyejo, Gupta, 2019): s(0) = 1.

    constant    1
    polynomial  (s + 1)^-a
    hinge       1 where s <= b, else 1 / (a (s - b) + 1)
"""
from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

Staleness = Literal["constant", "polynomial", "hinge"]


def worth(form: Staleness, s: jax.Array | int, a: Any, b: Any = 0.0) -> jax.Array:
    """float32, of the shape of s."""
    s = jnp.asarray(s, jnp.float32)
    if form == "polynomial":
        return (s + 1) ** -jnp.float32(a)
    return jnp.ones_like(s) if form == "constant" else jnp.where(s <= b, 1.0, 1 / (a * jnp.maximum(s - b, 0) + 1))
