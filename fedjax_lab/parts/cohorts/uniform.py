"""Participation: the same number of clients in every round, drawn uniformly without replacement."""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.types import Draw, Participation

UNLIMITED = jnp.iinfo(jnp.int32).max


def uniform(clients: int, cohort: int) -> Participation:
    """`cohort` of `clients`, distinct, each set equally likely; with cohort = clients everybody in every round."""

    def draw(key, state, clock):
        ids = keys.shuffle(key, jnp.arange(cohort, dtype=jnp.int32), clients)
        whole = jnp.ones(cohort, bool)
        return Draw(state, ids, whole, whole, jnp.full(cohort, UNLIMITED, jnp.int32))

    return Participation(cohort, lambda key, census: (), draw)
