"""What many methods' clients do alike: plain local training, and how much a client counts."""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.types import Census, ClientData, Cohort, Result, Task, Tree

Weighting = Literal["examples", "uniform"]


def weigh(weighting: Weighting, data: ClientData) -> jax.Array:
    """float32 scalar: n_i, or 1 for every client that has examples."""
    return (data.size if weighting == "examples" else data.size > 0).astype(jnp.float32)


def owned(task: Task, params: Tree, client: jax.Array) -> Tree:
    """These parameters, with the client's own architecture in use where clients have different ones."""
    return params if task.own is None else task.own(params, client)


def mass(weighting: Weighting, census: Census) -> jax.Array:
    """float32 scalar: the sum of the weights of all clients of the population, at least one."""
    return jnp.float32(max(1, int(np.sum(census.size if weighting == "examples" else census.size > 0, dtype=np.int64))))


def heard(cohort: Cohort) -> jax.Array:
    """float32 scalar: how many clients with examples took part."""
    return jnp.sum(cohort.mask & (cohort.size > 0), dtype=jnp.float32)


def mean_steps(cohort: Cohort, weighting: Weighting) -> jax.Array:
    """float32 scalar: the mean of the clients' local steps, by the weights of `weigh`; 0 where nobody was heard."""
    w = jnp.where(cohort.mask, cohort.size if weighting == "examples" else cohort.size > 0, 0).astype(jnp.float32)
    return jnp.sum(w * cohort.steps) / jnp.maximum(jnp.sum(w), 1)


def local_sgd(task: Task, work: Work, weighting: Weighting = "examples") -> Callable[..., Result]:
    """Local training along the plain gradient, as FedAvg's clients do it: y <- y - lr grad F(y; b) from the model received."""

    def local(key, message, client, data):
        y = descend(batches(key, data, work), message["model"], gradient(task), work.optimizer)
        return Result({"model": tree.sub(y.params, message["model"])}, weigh(weighting, data), client, metrics={"loss": y.loss})

    return local
