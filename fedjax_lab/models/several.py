"""Clients with models of different architectures, as one Task: every client's parameters have a place for each, and it uses its own."""
from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_lab.types import Batch, Key, Task, Tree


def several(name: str, tasks: Sequence[Task]) -> Task:
    """The task whose clients have these models in turn, by their ids.

    Parameters are {"models": (params of each task, ..), "which": float32 [G], 1 for the one in use}; `init` draws all from the same key and uses
    the first, `Task.own` says which is a client's. What is not in use has no gradient. With chunk=1, which is what a CPU takes, a client
    computes its own model only; clients that are mapped side by side compute all G and keep their own.

    Args:
      name: for messages and records.
      tasks: with outputs of one shape and the same metrics per example, those of the first; without normalization statistics.
    """

    def init(key: Key) -> Tree:
        return {"models": tuple(task.init(key) for task in tasks), "which": jax.nn.one_hot(0, len(tasks))}

    def own(params: Tree, client: jax.Array) -> Tree:
        return {**params, "which": jax.nn.one_hot(client % len(tasks), len(tasks))}

    def of_each(params: Tree, call):
        return jax.lax.switch(jnp.argmax(params["which"]), [lambda models, i=i, task=task: call(task, models[i]) for i, task in enumerate(tasks)],
                              params["models"])

    def apply(params: Tree, batch: Batch, key: Key | None = None) -> Tree:
        return of_each(params, lambda task, mine: task.apply(mine, batch, key))

    def loss(params: Tree, batch: Batch, key: Key | None):
        return of_each(params, lambda task, mine: task.loss(mine, batch, key))

    return Task(name, init, apply, loss, tasks[0].metrics, own=own)
