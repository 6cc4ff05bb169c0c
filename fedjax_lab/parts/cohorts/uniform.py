"""Participation: the same number of clients in every round, drawn uniformly without replacement."""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import drawn
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "Communication-Efficient Learning of Deep Networks from Decentralized Data"


@part(kind="participation", family="participation", paper=PAPER, year=2017)
def uniform(clients: int, cohort: int) -> Participation:
    """The cohort's number of clients, distinct, each set equally likely; everybody in every round where the cohort is everybody."""

    def draw(key, state, clock):
        ids = keys.shuffle(key, jnp.arange(cohort, dtype=jnp.int32), clients)
        return drawn(state, ids, jnp.ones(cohort, bool))

    return Participation(cohort, lambda key, census: (), draw)
