"""Participation: clients come and go by a Markov chain each."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import Probabilities, Shares, among, drawn, repeated
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "Federated Learning under Heterogeneous and Correlated Client Availability"


@part(kind="participation", family="participation", paper=PAPER, year=2023)
def markov(clients: int, cohort: int, *, arrive: Probabilities = (0.1,), leave: Shares = (0.1,)) -> Participation:
    """A uniform cohort among the available clients, or all of them; each is available by a two-state Markov chain of its own.

    The chains start in their stationary law, arrive / (arrive + leave), and forget by 1 - arrive - leave a round. The state is who is
    available in the round to come, bool [N]; a round costs O(N).

    Args:
      arrive: probability that an absent client is available in the next round, of clients 0, 1, .., repeated as often as needed.
      leave: probability that an available client is absent in the next round, likewise.
    """
    ids = jnp.arange(clients, dtype=jnp.int32)

    def toss(key, p):
        return jax.random.uniform(key, (clients,)) < p

    def init(key, census):
        come, go = repeated(arrive, ids), repeated(leave, ids)
        return toss(keys.purpose(key, "availability"), come / (come + go))

    def draw(key, state, clock):
        stays = jnp.where(state, 1 - repeated(leave, ids), repeated(arrive, ids))
        return drawn(toss(keys.purpose(key, "availability"), stays), *among(key, state, cohort))

    return Participation(cohort, init, draw)
