"""Participation: clients with more examples more often."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.parts.cohorts.drawn import array, drawn
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "Stochastic Beams and Where to Find Them: The Gumbel-Top-k Trick for Sampling Sequences Without Replacement"


@part(kind="participation", family="participation", paper=PAPER, year=2019)
def weighted(clients: int, cohort: int, *, weights: str | np.ndarray | None = None) -> Participation:
    """A cohort drawn one by one without replacement, each client with a probability in proportion to its weight among those left.

    So the first of a cohort is i with probability w_i / sum_j w_j, while heavy clients are in a cohort of many less often than in
    proportion. Clients without weight are never drawn. The weights are the sampler's state; a round costs O(N).

    Args:
      weights: an .npz whose `weights` [clients] are finite and not negative; by default the numbers of training examples.
    """
    held = None if weights is None else array("option 'weights' of 'weighted'", weights, "weights")
    if held is not None and (held.shape != (clients,) or held.dtype.kind not in "iuf" or not np.all(np.isfinite(held) & (held >= 0))):
        raise ValueError(f"option 'weights' of 'weighted': {held.dtype}{list(held.shape)}; expected [{clients}] finite numbers >= 0")

    def init(key, census):
        with np.errstate(divide="ignore"):
            return jnp.asarray(np.log(census.size if held is None else held), jnp.float32)

    def draw(key, state, clock):
        score = state + jax.random.gumbel(key, state.shape, mode="high")  # at low precision the best of millions would tie
        best, ids = jax.lax.top_k(score, cohort)
        return drawn(state, ids.astype(jnp.int32), best > -jnp.inf)

    return Participation(cohort, init, draw)
