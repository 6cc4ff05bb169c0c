"""What evaluations do not say of a run."""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.run import Prepared
from fedjax_lab.types import ClientData, State, View


def head_agreement(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
    """{"head_agreement": the mean cosine between the head's changes of any two clients, all of them trained from the present model}."""
    people, phase = jax.tree.map(jnp.asarray, prepared.population._replace(manifest={})), prepared.method.exchanges[-1]
    unlimited = jnp.int32(np.iinfo(np.int32).max)
    capacity = [int(np.max(stream.size)) for stream in (people.train, people.test)]

    def change(people, state, clock, client, row):
        train, test = (View(stream, client, c) for stream, c in zip((people.train, people.test), capacity, strict=True))
        data = ClientData(client, clock, train, test, people.counts[client], unlimited)
        result = phase.local(jax.random.fold_in(state.key, client), phase.broadcast(state.server, client, clock), row, data)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(result.upload["model"]["head"])])

    changes = jax.jit(jax.vmap(change, in_axes=(None, None, None, 0, 0)))

    def find(state: State, clock: int) -> dict[str, float]:
        heads = changes(people, state, jnp.int32(clock), jnp.arange(people.clients), state.clients)
        return {"head_agreement": agreement(np.asarray(heads, np.float64))}

    return find


def agreement(rows: np.ndarray) -> float:
    """The mean cosine between any two of the rows [N, d]."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    count = len(rows)
    return float(((unit.sum(0) ** 2).sum() - (unit**2).sum()) / (count * (count - 1)))
