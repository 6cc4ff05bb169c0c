"""What an oracle may know of the engine: who takes part in which round, and which examples each step sees.

Everything else of an oracle is numpy, written from the paper's card.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, local
from fedjax_lab.types import Census, ClientData, Participation, Population, Stream, View


class Turn(NamedTuple):
    """One client's part in one round: batches[t] are rows of `population.train.examples`, as an int array; key is what `local` gets.

    staleness: how many rounds before this one it was sent the model;  factor: the schedule's;  latest: the newest round after 0, 1, .. steps.
    again: (*purposes, rows=None, count=None, **work) -> batches of another pass, ordered by the key at the end of these purposes, of other
        work; of these rows only, and so many batches, where asked for.
    """

    client: int
    batches: list[np.ndarray]
    key: jax.Array
    again: Callable[..., list[np.ndarray]]
    staleness: int = 0
    factor: float = 1.0
    latest: np.ndarray = np.zeros(0)


def rounds(population: Population, participation: Participation, work: local.Work, root: jax.Array, count: int, phase: int = 0) -> list[list[Turn]]:
    """The turns of every round, clients in ascending order."""
    state, plans = participation.init(keys.purpose(keys.purpose(root, "participation"), "init"), Census(population.clients, np.asarray(population.train.size))), []
    for clock in range(count):
        key = keys.for_round(root, jnp.int32(clock))
        draw = participation.draw(keys.purpose(key, "cohort"), state, jnp.int32(clock))
        state = draw.state
        base, factor = (np.broadcast_to(x, draw.ids.shape) for x in (clock if draw.base is None else draw.base, draw.factor))
        latest = np.broadcast_to(base[:, None], (base.size, 99)) if draw.latest is None else np.asarray(draw.latest)
        cohort = sorted((int(i), int(a), int(b), float(f), s) for s, (i, m, a, b, f) in enumerate(zip(draw.ids, draw.mask, draw.allowance, base, factor)) if m)
        plans.append([turn(population, work, keys.for_round(root, jnp.int32(b)), i, a, phase)._replace(staleness=clock - b, factor=f, latest=latest[s])
                      for i, a, b, f, s in cohort])
    return plans


def turn(population: Population, work: local.Work, round_key: jax.Array, client: int, allowance: int, phase: int = 0) -> Turn:
    """The batches of one client in one round."""
    key = keys.for_client(round_key, jnp.int32(client))
    return _turn(population, work, at(key, f"phase{phase}", "local"), client, allowance)


def evaluation(population: Population, work: local.Work, root: jax.Array) -> list[Turn]:
    """What every client may do for its own model when that is evaluated; its key is what `personal` gets."""
    panel = [keys.for_client(keys.purpose(root, "personal"), jnp.int32(i)) for i in range(population.clients)]
    return [_turn(population, work, key, i, np.iinfo(np.int32).max) for i, key in enumerate(panel)]


def _turn(population: Population, work: local.Work, key: jax.Array, client: int, allowance: int) -> Turn:
    size, first = int(population.train.size[client]), int(population.train.offset[client])
    numbered = population.train._replace(examples={"row": jnp.arange(first, first + size)}, offset=0 * jnp.asarray(population.train.offset))
    view = View(numbered, jnp.int32(client), max(1, int(np.max(population.train.size))))
    data = ClientData(jnp.int32(client), jnp.int32(0), view, view, jnp.zeros(0), jnp.int32(allowance))

    def again(*path, rows=None, count=None, **changes):
        some = view if rows is None else View(Stream({"row": jnp.asarray([*rows, -1], jnp.int32)}, jnp.zeros(1, jnp.int32), jnp.full(1, len(rows), jnp.int32)),
                                              jnp.int32(0), view.capacity)
        plan = local.batches(at(key, *path), data, work._replace(**changes), some)
        found = [plan.at(jnp.int32(t)) for t in range(int(plan.steps) if count is None else count)]
        return [np.asarray(batch["row"])[np.asarray(batch["mask"])] for batch in found]

    return Turn(client, again(), key, again)


def at(key: jax.Array, *path: str | int) -> jax.Array:
    """The key at the end of a path of purposes and numbers."""
    for step in path:
        key = keys.purpose(key, step) if isinstance(step, str) else jax.random.fold_in(key, step)
    return key


def key_of(seed: np.ndarray) -> jax.Array:
    """The key of a seed that was drawn."""
    return jax.random.key(jnp.asarray(seed))


def drawn(kind: str, key: jax.Array, path: tuple[str | int, ...], *args: Any) -> np.ndarray:
    """What `jax.random` draws of this kind from the key at the end of a path of purposes and numbers."""
    return np.asarray(getattr(jax.random, kind)(at(key, *path), *args))


def shuffled(key: jax.Array, path: tuple[str | int, ...], n: int) -> np.ndarray:
    """The permutation of 0..n-1 that `keys.shuffle` makes of the key at the end of a path."""
    return np.asarray(keys.shuffle(at(key, *path), jnp.arange(n, dtype=jnp.int32), n))


def first_params(task, root: jax.Array, path: tuple[str | int, ...] = ("params",)):
    """The parameters that the engine starts from, or others drawn from the key at the end of a path."""
    return task.init(at(root, *path))
