"""Linear classifiers on top of a body that stays as it is."""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.parts import split
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms.split import Cut, cut
from fedjax_lab.types import Task, Tree


class Head(NamedTuple):
    """halves: the model, where the head is what counts as private;  matrix: the path of its one matrix;  features, classes: its shape."""

    halves: Cut
    matrix: str
    features: int
    classes: int

    def filled(self, params: Tree, matrix: jax.Array) -> Tree:
        """The model with this matrix in its head, and zeros in what else the head has."""
        leaves = self.halves.part(params, True)
        new = {path: matrix.astype(x.dtype) if path == self.matrix else jnp.zeros_like(x) for path, x in leaves.items()}
        return self.halves.join(self.halves.part(params, False), new)


def linear(name: str, task: Task, word: str) -> Head:
    """The head of a model, whose leaves have the word in their paths.

    Raises:
      ValueError: the model has no features and head, or the leaves chosen have not exactly one matrix.
    """
    split.demand(name, task)
    halves = cut(task, lambda params: named(params, word))
    found = {path: leaf.shape for path, leaf in halves.part(halves.like, True).items() if len(leaf.shape) == 2}
    if len(found) != 1:
        raise ValueError(f"'{name}' needs a head with one matrix [features, classes]; the leaves chosen have {len(found)}")
    ((path, shape),) = found.items()
    return Head(halves, path, *shape)
