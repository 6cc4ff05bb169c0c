"""Task -> Task: another way from features to outputs."""
from __future__ import annotations

from collections.abc import Callable

import jax

from fedjax_lab.parts import examples, split
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.types import Aux, Task, Tree


def reread(task: Task, features: Callable[..., jax.Array], head: Callable[[Tree, jax.Array], Tree]) -> Task:
    """The task whose outputs are head(params, features(params, batch, key)): its loss is the mean of what its metrics call the loss."""

    def apply(params, batch, key=None):
        return head(params, features(params, batch, key))

    def loss(params, batch, key):
        mask = batch["mask"]
        values = task.metrics(apply(params, batch, key), batch)
        means = {k: examples.mean(v, mask) for k, v in values.items()}
        return means["loss"], Aux(metrics={k: jax.lax.stop_gradient(v) for k, v in means.items() if k != "loss"})

    return task._replace(apply=apply, loss=loss, features=features, head=head)


def demand(method: str, task: Task) -> None:
    """That the task's model is split, and that what its features are is all in the parameters.

    Raises:
      ValueError: it is not, or it has normalization statistics.
    """
    split.demand(method, task)
    if statistics.present(task):
        raise ValueError(f"'{method}' needs a model without normalization statistics; task '{task.name}' has some: choose norm=group or none")
