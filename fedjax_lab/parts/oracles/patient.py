"""Local training that ends when its loss no longer falls."""
from __future__ import annotations

import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Batches, Direction, loop, with_stats
from fedjax_lab.types import Tree


def descend_patiently(plan: Batches, params: Tree, direction: Direction, optimizer: optax.GradientTransformation, epochs: int, patience: int) -> Tree:
    """`descend` until `patience` epochs in a row have brought no lower loss: the last iterate.

    Args:
      plan: the batches of so many epochs.
      params, direction, optimizer: as in `descend`.
      epochs: how many there are at most.
      patience: epochs; the loss of an epoch is the mean over its steps.
    """
    per_epoch = jnp.maximum(plan.steps // epochs, 1)

    def step(t, key, batch, carry):
        y, state, total, best, waited = carry
        going, over = waited < patience, (t + 1) % per_epoch == 0
        loss, v, stats = direction(key, y, batch)
        update, new = optimizer.update(v, state, y)
        y, state = tree.select(going, (with_stats(optax.apply_updates(y, update), stats), new), (y, state))
        total = total + loss
        waited = jnp.where(over & going, jnp.where(total < best, 0, waited + 1), waited)
        return y, state, jnp.where(over, 0, total), jnp.where(over, jnp.minimum(best, total), best), waited

    zero = 0 * jnp.sum(plan.steps)
    return loop(plan, (params, optimizer.init(params), 0.0 * zero, jnp.inf + zero, zero), step)[0]
