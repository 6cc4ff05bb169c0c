"""Plain networks as chains of layers whose hidden units have no order of their own."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.parts.leaves import paths
from fedjax_lab.types import Census, Task, Tree

Flat = Mapping[str, jax.Array]  # a model as {path: leaf}


class Layer(NamedTuple):
    """kernel, bias: paths, no bias where None.  places, inputs, outputs: the kernel is [places, inputs, outputs], with the inputs those that
    come from one unit of the layer before, at so many places of a window or of an image."""

    kernel: str
    bias: str | None
    places: int
    inputs: int
    outputs: int

    def cube(self, model: Flat) -> jax.Array:
        """The kernel as [places, inputs, outputs]."""
        return model[self.kernel].reshape(self.places, self.inputs, self.outputs)

    def leaves(self, model: Flat) -> dict[str, jax.Array]:
        """The layer's own part of a model."""
        return {path: model[path] for path in (self.kernel, self.bias) if path}

    def units(self, model: Flat) -> jax.Array:
        """[outputs, D]: what comes into each unit, and its bias."""
        incoming = model[self.kernel].reshape(-1, self.outputs).T
        return incoming if self.bias is None else jnp.concatenate([incoming, model[self.bias][:, None]], 1)

    def made(self, units: jax.Array, like: Flat) -> dict[str, jax.Array]:
        """The layer of such units."""
        count = self.places * self.inputs
        found = {self.kernel: units[:, :count].T.reshape(like[self.kernel].shape)}
        return found if self.bias is None else {**found, self.bias: units[:, count]}


def chain(name: str, task: Task, head: str) -> list[Layer]:
    """The model's layers by path, those with the word `head` in it last.

    Raises:
      ValueError: it is no chain of at least two layers of kernels and biases.
    """
    flat = paths(jax.eval_shape(task.init, jax.random.key(0)))
    found: list[Layer] = []
    for path in sorted((p for p, x in flat.items() if len(x.shape) > 1), key=lambda p: head in p):
        stem, _, last = path.rpartition("/")
        bias = "/".join([stem, last.replace("kernel", "bias").replace("w", "b")]).lstrip("/")
        inputs, outputs = int(np.prod(flat[path].shape[:-1])), flat[path].shape[-1]
        before = found[-1].outputs if found else inputs
        if inputs % before:
            raise ValueError(f"'{name}' needs a plain chain of layers; '{path}' of task '{task.name}' does not follow '{found[-1].kernel}'")
        found.append(Layer(path, bias if bias in flat else None, inputs // before, before, outputs))
    rest = set(flat) - {p for layer in found for p in (layer.kernel, layer.bias)}
    if rest or len(found) < 2:
        raise ValueError(f"'{name}' needs a plain network of at least two layers; task '{task.name}' has {len(found)} kernels" + (
            f" and '{min(rest)}'" if rest else ""))
    return found


def in_order(name: str, task: Task, layers: Sequence[Layer], params: Tree, census: Census) -> None:
    """Checks that the model's layers follow each other as in the chain.

    Raises:
      ValueError: they do not, or it is not known.
    """
    seen: list[str] = []
    if task.taps is not None:
        jax.eval_shape(lambda params, batch: seen.extend(task.taps(params, batch)), params, census.batch())
    if seen != [layer.kernel for layer in layers]:
        raise ValueError(f"'{name}' needs to know in which order layers follow; task '{task.name}' says {', '.join(seen) or 'nothing'}")


def narrowed(model: Flat, layers: Sequence[Layer], at: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """The network of the hidden units at [own] of each layer, which are then the first ones; all others are zero."""
    found = dict(model)
    for n, layer in enumerate(layers):
        cube = layer.cube(model)
        if n:
            cube = jnp.zeros_like(cube).at[:, : len(at[n - 1])].set(cube[:, at[n - 1]])
        if n + 1 < len(layers):
            cube = jnp.zeros_like(cube).at[:, :, : len(at[n])].set(cube[:, :, at[n]])
            if layer.bias:
                found[layer.bias] = jnp.zeros_like(model[layer.bias]).at[: len(at[n])].set(model[layer.bias][at[n]])
        found[layer.kernel] = cube.reshape(model[layer.kernel].shape)
    return found


def rewired(model: Flat, layer: Layer, place: jax.Array) -> dict[str, jax.Array]:
    """The model, where what a layer got from the first units it now gets from units place [own], and nothing from others."""
    cube = layer.cube(model)
    return {**model, layer.kernel: jnp.zeros_like(cube).at[:, place].set(cube[:, : len(place)]).reshape(model[layer.kernel].shape)}
