"""Participation: every client decides for itself, with its own probability."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import Probabilities, drawn, repeated
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging"


@part(kind="participation", family="participation", paper=PAPER, year=2024)
def bernoulli(clients: int, cohort: int, *, q: Probabilities | None = None) -> Participation:
    """Each client takes part in each round with its own probability, independently; a round may be empty.

    Every client has a slot and a coin in every round, so this costs O(N); `poisson` is the same with equal probabilities, in O(cohort).

    Args:
      q: probabilities of clients 0, 1, .., repeated as often as needed; by default cohort / clients.
    """
    q = (cohort / clients,) if q is None else q
    ids = jnp.arange(clients, dtype=jnp.int32)

    def draw(key, state, clock):
        here = jax.vmap(lambda i: jax.random.bernoulli(keys.for_client(key, i), repeated(q, i)))(ids)
        return drawn(state, ids, here)

    return Participation(clients, lambda key, census: (), draw)
