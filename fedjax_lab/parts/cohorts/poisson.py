"""Participation: every client takes part independently with the same probability, at a cost that does not follow the population."""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import drawn
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Participation

PAPER = "Learning Differentially Private Recurrent Language Models"


@part(kind="participation", family="participation", paper=PAPER, year=2018)
def poisson(clients: int, cohort: int, *, q: Annotated[float, Range(0, 1, open="low")] | None = None, slots: Count | None = None) -> Participation:
    """Each client takes part in each round with the same probability, independently, so that the cohort's size varies around its mean.

    The number of clients is binomial, and given the number every set of them is equally likely. Where there are more than slots, a
    uniform choice of them takes part, and the metric "overflow" counts the others: then the rounds are not Poisson rounds.

    Args:
      q: probability of each client; by default cohort / clients, and the cohort is the mean number of clients.
      slots: room for clients in a round; by default so much that one round in a million overflows. Empty slots cost nothing.
    """
    from scipy import stats

    law = stats.binom(clients, cohort / clients if q is None else q)
    slots = max(1, int(law.isf(1e-6))) if slots is None else slots
    if slots > clients:
        raise ValueError(f"option 'slots' of 'poisson': '{slots}' is more than the {clients} clients there are; choose 1..{clients}")
    low, high = int(law.ppf(2**-33)), int(law.isf(2**-33))
    upto = np.rint(law.cdf(np.arange(low, high)) * 2.0**32).astype(np.uint32)  # the law's steps, in float64 on the host

    def draw(key, state, clock):
        word = jax.random.bits(keys.purpose(key, "count"), (), jnp.uint32)
        count = low + jnp.searchsorted(upto, word, side="right").astype(jnp.int32)  # exact to 2^-32, as no float32 sampler is
        place = jnp.arange(slots, dtype=jnp.int32)
        overflow = jnp.maximum(count - slots, 0)
        return drawn(state, keys.shuffle(key, place, clients), place < count)._replace(metrics={"overflow": overflow})

    return Participation(slots, lambda key, census: (), draw)
