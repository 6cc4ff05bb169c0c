"""Pseudo-samples without labels: each the mean of a few examples of one client, gathered once, before the first round."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import rules
from fedjax_lab.parts.once import once
from fedjax_lab.parts.wires.plain import rows_unless_zero
from fedjax_lab.types import Census, Key, Method, Phase, Result, Task


def blank(name: str, key: Key, task: Task, census: Census, batch_size: int | str) -> tuple[jax.Array, jax.Array]:
    """Whose examples the items are made of, int32 [B], and zeros [B, ...] where they will be; B is that of the largest batch.

    The owners are random clients that have examples, drawn with replacement.

    Raises:
      ValueError: the inputs cannot be averaged; the line names the method and the task.
    """
    if not jnp.issubdtype(census.example["x"].dtype, jnp.floating):
        raise ValueError(f"'{name}' needs inputs that can be averaged; those of task '{task.name}' are {census.example['x'].dtype}")
    longest = max(1, int(np.max(census.size)))
    rows = longest if batch_size == "full" else min(batch_size, longest)
    return jax.random.choice(key, jnp.asarray(np.flatnonzero(census.size), jnp.int32), (rows,)), census.batch(rows)["x"]


def gathered(method: Method, mixed: int) -> Phase:
    """The exchange that fills the field `pseudo` of the server's state: an owner in its field `owners` gives the mean of `mixed` of its
    examples, drawn with replacement; the others give zeros, which cost a bit each."""

    def give(key, message, client, data):
        def item(j, mine):
            positions = jax.random.randint(jax.random.fold_in(key, j), (mixed,), 0, jnp.maximum(data.size, 1))
            x = data.train.take(positions, jnp.ones(mixed, bool))["x"]
            return jnp.where(mine, jnp.mean(x, 0), 0)

        mine = message["owners"] == data.id
        return Result({"pseudo": jax.vmap(item)(jnp.arange(mine.shape[0]), mine)}, 1.0)

    def collect(key, server, aggregate, cohort):
        return server._replace(pseudo=aggregate["pseudo"].astype(server.pseudo.dtype))

    return once(method, give, ("owners",), serve=collect, aggregate={"pseudo": rules.total()}, up={"pseudo": rows_unless_zero()})
