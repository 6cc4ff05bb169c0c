"""What an oracle may know of the engine: who takes part in which round, and which examples each step sees.

Everything else of an oracle is numpy, written from the paper's card.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, local
from fedjax_lab.types import Census, ClientData, Participation, Population, View


class Turn(NamedTuple):
    """One client's part in one round: batches[t] are rows of `population.train.examples`, as an int array; key is what `local` gets."""

    client: int
    batches: list[np.ndarray]
    key: jax.Array


def rounds(population: Population, participation: Participation, work: local.Work, root: jax.Array, count: int, phase: int = 0) -> list[list[Turn]]:
    """The turns of every round, clients in ascending order."""
    state, plans = participation.init(keys.purpose(keys.purpose(root, "participation"), "init"), Census(population.clients, np.asarray(population.train.size))), []
    for clock in range(count):
        key = keys.for_round(root, jnp.int32(clock))
        draw = participation.draw(keys.purpose(key, "cohort"), state, jnp.int32(clock))
        state = draw.state
        cohort = sorted((int(i), int(a)) for i, m, a in zip(draw.ids, draw.mask, draw.allowance) if m)
        plans.append([turn(population, work, key, i, a, phase) for i, a in cohort])
    return plans


def turn(population: Population, work: local.Work, round_key: jax.Array, client: int, allowance: int, phase: int = 0) -> Turn:
    """The batches of one client in one round."""
    key = keys.purpose(keys.purpose(keys.for_client(round_key, jnp.int32(client)), f"phase{phase}"), "local")
    size = int(population.train.size[client])
    view = View(population.train, jnp.int32(client), max(1, int(np.max(population.train.size))))
    data = ClientData(jnp.int32(client), jnp.int32(0), view, view, jnp.zeros(0), jnp.int32(allowance))
    first = int(population.train.offset[client])
    numbered = view._replace(stream=population.train._replace(examples={"row": jnp.arange(first, first + size)}, offset=0 * jnp.asarray(population.train.offset)))
    plan = local.batches(key, data._replace(train=numbered), work)
    batches = []
    for t in range(int(plan.steps)):
        batch = plan.at(jnp.int32(t))
        batches.append(np.asarray(batch["row"])[np.asarray(batch["mask"])])
    return Turn(client, batches, key)


def first_params(task, root: jax.Array):
    """The parameters that the engine starts from."""
    return task.init(keys.purpose(root, "params"))
