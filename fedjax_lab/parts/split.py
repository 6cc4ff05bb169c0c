"""Models in two pieces, features and head: what methods that look in between have in common."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Census, Task, Tree


def demand(method: str, task: Task) -> None:
    """That the task's model is split.

    Raises:
      ValueError: it is not.
    """
    if task.features is None or task.head is None:
        raise ValueError(f"'{method}' needs a model with features and a head; task '{task.name}' has none: choose a model with such a split")


def demand_classes(method: str, task: Task, census: Census) -> int:
    """C, the number of classes of one label per example.

    Raises:
      ValueError: the task is no such classification.
    """
    if not census.classes or census.example["y"].shape:
        raise ValueError(f"'{method}' needs one class per example; task '{task.name}' has none")
    return census.classes


def feature_shape(task: Task, params: Tree, census: Census) -> tuple[int, ...]:
    """The shape of one example's features."""
    return jax.eval_shape(task.features, params, census.batch()).shape[1:]


def by_class(z: jax.Array, y: jax.Array, mask: jax.Array, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number [C], mean and unbiased standard deviation [C, F] of features z [B, F] with labels y [B], where the mask [B] holds.

    The mean is zero without examples, the deviation with fewer than two.
    """
    chosen = ((y[:, None] == jnp.arange(classes)) & mask[:, None]).astype(z.dtype)
    number = chosen.sum(0)
    z = jnp.where(mask[:, None], z, 0)
    mean = chosen.T @ z / jnp.maximum(number, 1)[:, None]
    square = jnp.einsum("bc,bcf->cf", chosen, (z[:, None] - mean) ** 2)
    return number, mean, jnp.sqrt(square / jnp.maximum(number - 1, 1)[:, None])


def label_free(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy [B] of logits [B, C] with soft labels [B, C] or [C]."""
    return -jnp.sum(target * jax.nn.log_softmax(outputs), -1)
