"""Participation: as it was recorded, or written down."""
from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from fedjax_lab.parts.cohorts.drawn import among, array, drawn
from fedjax_lab.registry import part
from fedjax_lab.types import Participation

PAPER = "Characterizing Impacts of Heterogeneity in Federated Learning upon Large-Scale Smartphone Data"
WHAT = "option 'rounds' of 'trace'"


@part(kind="participation", family="participation", paper=PAPER, year=2021)
def trace(clients: int, cohort: int, *, rounds: str | np.ndarray) -> Participation:
    """Round by round the clients that a table names, or a uniform cohort among those that it calls available; then from the start again.

    The table is the sampler's state. Where it names clients, all of them take part, however many the cohort has.

    Args:
      rounds: an .npz with `ids` [rounds, n], integers padded with -1 and distinct in each round, or with `available` [rounds, clients], bool.
    """
    table = array(WHAT, rounds, "ids", "available")
    if table.ndim != 2 or not table.size or table.dtype.kind not in "biu" or (table.dtype == bool and table.shape[1] != clients):
        raise ValueError(f"{WHAT}: {table.dtype}{list(table.shape)}; expected integer [rounds, n] or bool [rounds, {clients}]")
    named = table.dtype != bool
    table = _named(table, clients) if named else table

    def draw(key, state, clock):
        row = state[clock % state.shape[0]]
        return drawn(state, jnp.maximum(row, 0), row >= 0) if named else drawn(state, *among(key, row, cohort))

    return Participation(table.shape[1] if named else cohort, lambda key, census: jnp.asarray(table), draw)


def _named(table: np.ndarray, clients: int) -> np.ndarray:
    """The ids int32 [T, S] in descending order, without columns that nobody fills."""
    wrong = (table < -1) | (table >= clients)
    if wrong.any():
        raise ValueError(f"{WHAT}: round {int(np.argmax(wrong.any(1)))} names client {table[wrong][0]}; expected 0..{clients - 1}, or -1 for nobody")
    table = -np.sort(-table.astype(np.int32), 1)
    twice = (table[:, 1:] == table[:, :-1]) & (table[:, 1:] >= 0)
    if twice.any():
        raise ValueError(f"{WHAT}: round {int(np.argmax(twice.any(1)))} names client {table[:, 1:][twice][0]} twice")
    return table[:, : max(1, int((table >= 0).sum(1).max()))]
