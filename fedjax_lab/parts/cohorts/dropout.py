"""Participation: clients that are lost in the middle of a round."""
from __future__ import annotations

import jax

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import Shares, repeated
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "Towards Federated Learning at Scale: System Design"


@part(kind="participation", family="participation", paper=PAPER, year=2019)
def dropout(inner: Participation, *, rate: Shares = (0.1,)) -> Participation:
    """Each client that starts is lost before its upload with this probability, independently: it has cost its message, nobody hears it.

    Args:
      rate: probabilities of clients 0, 1, .., repeated as often as needed.
    """

    def draw(key, state, clock):
        found = inner.draw(key, state, clock)
        fate = keys.purpose(key, "dropout")
        lost = jax.vmap(lambda i: jax.random.bernoulli(keys.for_client(fate, i), repeated(rate, i)))(found.ids)
        return found._replace(heard=found.heard & ~lost)

    return inner._replace(draw=draw)
