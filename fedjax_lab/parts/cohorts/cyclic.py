"""Participation: groups of clients in turn."""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.cohorts.drawn import drawn
from fedjax_lab.registry import part
from fedjax_lab.spec import Count
from fedjax_lab.types import Participation

PAPER = "On the Convergence of Federated Averaging with Cyclic Client Participation"


@part(kind="participation", family="participation", paper=PAPER, year=2023)
def cyclic(clients: int, cohort: int, *, groups: Count | None = None, shuffle: bool = False) -> Participation:
    """Blocks of consecutive clients in turn, and in each round a uniform cohort of one block, or all of it where the cohort holds it.

    Blocks differ in size by at most one client. With the default number of them everybody takes part once in a cycle.

    Args:
      groups: number of blocks, and of rounds in a cycle; by default as few as the cohort can hold.
      shuffle: new blocks in each cycle, of clients chosen at random.
    """
    groups = -(-clients // cohort) if groups is None else groups
    if groups > clients:
        raise ValueError(f"option 'groups' of 'cyclic': '{groups}' is more than the {clients} clients there are; choose 1..{clients}")
    least, larger = divmod(clients, groups)

    def init(key, census):
        return keys.purpose(key, "cycles") if shuffle else ()

    def draw(key, state, clock):
        turn, place = clock % groups, jnp.arange(cohort, dtype=jnp.int32)
        size = least + (turn < larger)
        ids = turn * least + jnp.minimum(turn, larger) + keys.shuffle(key, place, size)
        if shuffle:
            ids = keys.shuffle(keys.for_round(state, clock // groups), ids, clients)
        return drawn(state, ids, place < size)

    return Participation(cohort, init, draw)
