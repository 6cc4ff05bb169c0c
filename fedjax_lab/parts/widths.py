"""Narrower models inside a model: the first units of every hidden layer, as masks over its parameters.

A layer is a matrix [in, out] or a kernel [h, w, in, out]. Layers follow each other in the natural order of their paths, the head comes
last; every other layer's outputs are a hidden layer's units, and the next layer's inputs are these units, as often as they fit (a flattened
image of C channels has h w C of them). Vectors belong to the units of a layer: of equally named ones the next that has their size.
A hidden unit with zeros for parameters must be silent, as after relu, tanh or batch normalization; a layer normalization of all units
would know how many there are.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.parts.leaves import paths
from fedjax_lab.types import Task, Tree


class Chain(NamedTuple):
    """units: how many each hidden layer has.  axes: {path: ((axis, hidden layer), ..)}, axes from the end;  like: the model's shapes.
    outputs: the paths of the output layer.  sums: the paths of the hidden layers' own matrices and biases."""

    units: tuple[int, ...]
    axes: Mapping[str, tuple[tuple[int, int], ...]]
    like: Tree
    outputs: tuple[str, ...]
    sums: tuple[str, ...]

    def held(self, kept: jax.Array) -> Tree:
        """Bools that broadcast against the parameters: which of them a model with the first `kept` [hidden layers] units has."""
        found = []
        for path, leaf in paths(self.like).items():
            mark = jnp.ones((1,) * len(leaf.shape), bool)
            for axis, layer in self.axes[path]:
                side = jnp.arange(leaf.shape[axis]) % self.units[layer] < kept[layer]
                mark = mark & side.reshape(-1, *[1] * (-1 - axis))
            found.append(mark)
        return jax.tree.unflatten(jax.tree.structure(self.like), found)

    def entries(self, kept: Sequence[int]) -> int:
        """How many parameters such a model has."""
        total = 0
        for path, leaf in paths(self.like).items():
            inner = {axis: leaf.shape[axis] // self.units[layer] * int(kept[layer]) for axis, layer in self.axes[path]}
            total += math.prod(inner.get(axis, leaf.shape[axis]) for axis in range(-len(leaf.shape), 0))
        return total

    def marked(self, chosen: tuple[str, ...]) -> Tree:
        """Bools, one for each leaf: whether its path is among the chosen."""
        return jax.tree.unflatten(jax.tree.structure(self.like), [path in chosen for path in paths(self.like)])


def chain(name: str, task: Task, head: str) -> Chain:
    """The layers of a task's model.

    Args:
      name: of the method, for messages.
      head: a word in the path of the output layer.

    Raises:
      ValueError: the model is no such chain.
    """
    like = jax.eval_shape(task.init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in paths(like).items()}

    def demand(holds, why):
        if not holds:
            raise ValueError(f"'{name}' needs a chain of dense or convolutional layers that ends in one named '{head}'; task '{task.name}': {why}")

    odd = next((path for path, shape in shapes.items() if len(shape) not in (1, 2, 4)), None)
    demand(odd is None, f"'{odd}' has {len(shapes[odd]) if odd else 0} axes")
    maps = sorted((p for p, s in shapes.items() if len(s) > 1), key=lambda p: (head in p, *_natural(p)))
    demand(len(maps) > 1 and [head in p for p in maps[-2:]] == [False, True], "it has no hidden layer, or not one such head")
    units = tuple(shapes[p][-1] for p in maps[:-1])
    for layer, (path, size) in enumerate(zip(maps[1:], units, strict=True)):
        demand(shapes[path][-2] % size == 0, f"the {shapes[path][-2]} inputs of '{path}' are not made of the {size} units of '{maps[layer]}'")
    axes = {p: (((-2, i - 1),) if i else ()) + (((-1, i),) if i < len(units) else ()) for i, p in enumerate(maps)}
    last: dict[str, int] = {}
    for path in sorted((p for p, s in shapes.items() if len(s) == 1), key=_natural):
        kind = re.sub(r"\d+", "", path)
        layers = [i for i, size in enumerate(units) if size == shapes[path][0] and i > last.get(kind, -1)]
        demand(head in path or layers, f"it is unclear whose '{path}' is")
        axes[path] = () if head in path else ((-1, layers[0]),)
        last[kind] = -1 if head in path else layers[0]
    outputs = tuple(p for p in shapes if head in p)
    sums = tuple(p for p in shapes if head not in p and "norm" not in p.lower() and not p.startswith("stats"))
    return Chain(units, axes, like, outputs, sums)


def _natural(path: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
