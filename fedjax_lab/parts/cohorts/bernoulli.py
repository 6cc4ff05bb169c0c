"""Participation: every client decides for itself, with its own probability."""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.uniform import UNLIMITED
from fedjax_lab.spec import Range
from fedjax_lab.types import Draw, Participation

Probabilities = Annotated[tuple[float, ...], Range(0, 1, open="low")]


def cyclic(q: tuple[float, ...], client: jax.Array) -> jax.Array:
    """float32, the probability of a client (any shape of ids) where q is repeated over the clients."""
    return jnp.asarray(q, jnp.float32)[client % len(q)]


def bernoulli(clients: int, q: Probabilities = (0.1,)) -> Participation:
    """Each client takes part in each round with its own probability, independently; a round may be empty.

    Args:
      clients: of the population; every one has a slot.
      q: probabilities of clients 0, 1, .., repeated as often as needed.
    """
    ids = jnp.arange(clients, dtype=jnp.int32)

    def draw(key, state, clock):
        here = jax.vmap(lambda i: jax.random.bernoulli(keys.for_client(key, i), cyclic(q, i)))(ids)
        return Draw(state, ids, here, here, jnp.full(clients, UNLIMITED, jnp.int32))

    return Participation(clients, lambda key, census: (), draw)
