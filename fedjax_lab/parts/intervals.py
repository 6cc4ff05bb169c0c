"""How often a client takes part, estimated from the past: the running mean of the intervals between its participations.

Wang, Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging", ICLR 2024 (FedAU), Algorithm 2. The
mean starts at 1. What round t uses comes from rounds before t alone.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Intervals(NamedTuple):
    """One client's record: the mean interval (float32), how many intervals it is of, and the round that closed the last one (int32)."""

    mean: jax.Array
    count: jax.Array
    last: jax.Array


def never() -> Intervals:
    """The record of a client that has not taken part."""
    return Intervals(jnp.float32(1), jnp.int32(0), jnp.int32(-1))


def before(record: Intervals, clock: jax.Array, cutoff: int) -> Intervals:
    """The record as it stands at the beginning of round `clock`: an absence of `cutoff` rounds counts as an interval of that length."""
    absences = (clock - 1 - record.last) // cutoff if cutoff else jnp.zeros_like(record.count)
    mean = _joined(record, absences, absences * cutoff)
    return Intervals(mean, record.count + absences, record.last + absences * cutoff)


def after(record: Intervals, clock: jax.Array) -> Intervals:
    """The record once the client has taken part in round `clock`."""
    return Intervals(_joined(record, jnp.int32(1), clock - record.last), record.count + 1, clock)


def _joined(record: Intervals, more: jax.Array, length: jax.Array) -> jax.Array:
    joined = (record.count * record.mean + length) / jnp.maximum(record.count + more, 1)
    return jnp.where(more > 0, joined, record.mean).astype(jnp.float32)
