"""What is computed once over all clients, before the first round."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work
from fedjax_lab.parts.oracles.directions import full_gradient
from fedjax_lab.types import ClientData, Key, Population, Task, Tree, View

BATCH = 256  # of the pass where the method's own is "full": a full gradient does not depend on it


def first_gradient(key: Key, task: Task, params: Tree, population: Population, work: Work) -> Tree:
    """(1 / N) sum_i grad F_i(params) over all N clients, each on all of its examples, one client at a time."""
    examples = jax.tree.leaves(population.train.examples)[0].shape[0]
    work = work._replace(batch_size=BATCH if work.batch_size == "full" else work.batch_size)
    unlimited = jnp.int32(jnp.iinfo(jnp.int32).max)

    def add(i, total):
        views = [View(stream, i, examples) for stream in (population.train, population.test)]
        data = ClientData(i, jnp.int32(0), *views, population.counts[i], unlimited)
        return tree.add(total, full_gradient(keys.for_client(key, i), task, params, data, work))

    total = jax.lax.fori_loop(jnp.int32(0), jnp.int32(population.clients), add, tree.zeros_like(params))
    return tree.scale(1 / population.clients, total)
