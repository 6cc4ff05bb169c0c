"""From a module, arrays and a loss to a Task.

A batch is {"x": [B, ...], "y": [B, ...], "mask": [B]}, and whatever else a module reads. One rule for padding: rows where the mask
is False are set to zero before the model sees them and their values never enter a sum, so that neither the loss nor its gradient
depends on what stands there, not even on NaN. One rule for pixels: uint8 inputs are images and become float32 in [0, 1]; other
dtypes pass, so token ids must not be uint8.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fedjax_lab.models.conv import Conv
from fedjax_lab.types import Aux, Batch, Key, Task, Tree

PerExample = Callable[[Tree, Batch], jax.Array]
"""(outputs, batch) -> [B], one value per example."""


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of values [B] where mask [B] holds; 0, with zero gradient, where it holds nowhere."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def make_task(name: str, module: nn.Module, example: Batch, loss: PerExample, metrics: Mapping[str, PerExample] | None = None,
              normalize: tuple[Any, Any] | None = None, inputs: Sequence[str] | None = None) -> Task:
    """A Task from any flax.linen module and any loss per example.

    >>> class Quadratic(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(1)(x * x)
    >>> example = {"x": jnp.zeros((1, 3)), "y": jnp.zeros((1,)), "mask": jnp.ones((1,), bool)}
    >>> task = make_task("quadratic", Quadratic(), example, loss=lambda outputs, batch: (outputs[:, 0] - batch["y"]) ** 2)
    >>> params = task.init(jax.random.key(0))
    >>> task.apply(params, {"x": jnp.ones((5, 3))}).shape
    (5, 1)

    If the module's signature has `train` it is told whether a key was given (training mode), and the key feeds its "dropout" stream;
    if it has `mask` it gets the mask [B] (for batch statistics). A collection "batch_stats" makes the parameters
    {"params": ..., "stats": ...}: training mode normalizes by the batch and returns the new statistics in Aux.stats; without a key
    the running statistics are used. A module with a method `features(x)` and a method or submodule `head`, where module(x) is
    head(features(x)), fills Task.features and Task.head. Task.taps has its dense and convolutional layers; not those inside of a scan.

    Args:
      name: for messages and records.
      module: maps inputs [B, ...] to outputs [B, ...].
      example: a batch of any size, for the shapes.
      loss: (outputs, batch) -> [B].
      metrics: more of the kind, by name; they are reported beside "loss".
      normalize: (mean, deviation) of the inputs, after the scaling of images.
      inputs: names of the batch's arrays that the module takes, in order; by default `module.inputs`, or ("x",).

    Raises:
      ValueError: the example lacks an array, or, from `init`, the module has collections beside params and batch_stats.
    """
    names = tuple(inputs or getattr(module, "inputs", ("x",)))
    missing = [n for n in (*names, "y") if n not in example]
    if missing:
        raise ValueError(f"task {name!r} needs the array {missing[0]!r}; the example batch has {', '.join(sorted(example))}")
    values = {"loss": loss, **(metrics or {})}
    call = _caller(module, names, normalize)

    def init(key: Key) -> Tree:
        arrays = [_pixels(jnp.zeros((1, *example[n].shape[1:]), example[n].dtype), normalize) for n in names]
        variables = dict(module.init({"params": key, "dropout": key}, *arrays))
        unknown = set(variables) - {"params", "batch_stats"}
        if unknown:
            raise ValueError(f"task {name!r}: collection {unknown.pop()!r} of the module is not one of params, batch_stats")
        params = variables.get("params", {})
        return {"params": params, "stats": variables["batch_stats"]} if "batch_stats" in variables else params

    def apply(params: Tree, batch: Batch, key: Key | None = None) -> Tree:
        return call("__call__", params, batch, key)[0]

    def task_loss(params: Tree, batch: Batch, key: Key | None) -> tuple[jax.Array, Aux]:
        outputs, stats = call("__call__", params, batch, key)
        clean, mask = blank(batch), mask_of(batch)
        means = {k: masked_mean(f(outputs, clean), mask) for k, f in values.items()}
        return means["loss"], Aux(stats, {k: jax.lax.stop_gradient(v) for k, v in means.items() if k != "loss"})

    def per_example(outputs: Tree, batch: Batch) -> Mapping[str, jax.Array]:
        return {k: f(outputs, blank(batch)) for k, f in values.items()}

    def features(params: Tree, batch: Batch, key: Key | None = None) -> jax.Array:
        return call("features", params, batch, key)[0]

    def head(params: Tree, z: jax.Array) -> Tree:
        return module.apply(_variables(params), z, method=lambda bound, z: bound.head(z))

    def taps(params: Tree, batch: Batch) -> Mapping[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        top = ["params"] if set(params) == {"params", "stats"} else []

        def watch(function, args, kwargs, context):
            layer = context.module
            if context.method_name == "__call__" and isinstance(layer, (nn.Dense, Conv)):
                found["/".join((*top, *layer.path, "kernel"))] = places(layer, args[0])
            return function(*args, **kwargs)

        with nn.intercept_methods(watch):
            call("__call__", params, batch, None)
        return found

    split = (features, head) if hasattr(type(module), "features") else (None, None)
    return Task(name, init, apply, task_loss, per_example, *split, taps)


def places(layer: nn.Module, x: jax.Array) -> jax.Array:
    """[B, P, d]: what a dense or convolutional layer multiplies its kernel [.., outputs] by at each of its P places, in the kernel's order."""
    if isinstance(layer, nn.Dense):
        return x.reshape(x.shape[0], -1, x.shape[-1])
    window = jax.lax.conv_general_dilated_patches(x, layer.kernel_size, layer.strides, layer.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    by_channel = window.reshape(x.shape[0], -1, x.shape[-1], window.shape[-1] // x.shape[-1])
    return by_channel.swapaxes(2, 3).reshape(x.shape[0], -1, window.shape[-1])


def classification(name: str, module: nn.Module, example: Batch, *, normalize: tuple[Any, Any] | None = None) -> Task:
    """Softmax cross entropy and accuracy of a module that gives logits.

    Logits [B, C] go with labels y [B]; logits [B, T, C] with y [B, T] (next character, nodes of a graph), where positions with a
    negative label are padding and an example's value is the mean over the others (0 if there are none). The loss is in nats.

    Args:
      name, module, example, normalize: see `make_task`.

    Raises:
      ValueError: see `make_task`.

    >>> example = {"x": jnp.zeros((1, 3)), "y": jnp.zeros((1,), jnp.int32), "mask": jnp.ones((1,), bool)}
    >>> task = classification("linear", nn.Dense(4), example)
    >>> params = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    >>> float(jnp.exp(task.loss(params, example, None)[0]))  # of four classes that are equally likely
    4.0
    """
    return make_task(name, module, example, cross_entropy, {"accuracy": accuracy}, normalize)


def margins(name: str, module: nn.Module, example: Batch, *, normalize: tuple[Any, Any] | None = None) -> Task:
    """Squared hinge, of each class against the others, and accuracy of a module that gives a margin per class.

    Args:
      name, module, example, normalize: see `make_task`.

    Raises:
      ValueError: see `make_task`.

    >>> example = {"x": jnp.zeros((1, 3)), "y": jnp.zeros((1,), jnp.int32), "mask": jnp.ones((1,), bool)}
    >>> task = margins("svm", nn.Dense(4), example)
    >>> float(task.loss(task.init(jax.random.key(0)), example, None)[0])  # all four margins are 0, and 1 is wanted of each
    4.0
    """
    return make_task(name, module, example, squared_hinge, {"accuracy": accuracy}, normalize)


def regression(name: str, module: nn.Module, example: Batch, *, normalize: tuple[Any, Any] | None = None) -> Task:
    """Squared error of a module that gives [B], [B, 1] or the shape of y; the mean over an example's outputs, without a factor 1/2.

    Args:
      name, module, example, normalize: see `make_task`.

    Raises:
      ValueError: see `make_task`.

    >>> example = {"x": jnp.zeros((1, 3)), "y": jnp.full((1,), 3.0), "mask": jnp.ones((1,), bool)}
    >>> task = regression("linear", nn.Dense(1), example)
    >>> float(task.loss(task.init(jax.random.key(0)), example, None)[0])
    9.0
    """
    return make_task(name, module, example, squared_error, None, normalize)


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Softmax cross entropy per example in nats, [B]."""
    y = batch["y"]
    return _over_positions(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0)), y >= 0)


def squared_hinge(outputs: jax.Array, batch: Batch) -> jax.Array:
    """sum_c max(0, 1 - s_c o_c)^2 per example, [B], where s_c is 1 for the label and -1 for other classes."""
    side = 2 * jax.nn.one_hot(batch["y"], outputs.shape[-1], dtype=outputs.dtype) - 1
    return jnp.square(jax.nn.relu(1 - side * outputs)).sum(-1)


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """1 where the largest logit is the label's, per example, [B]."""
    y = batch["y"]
    return _over_positions((logits.argmax(-1) == y).astype(logits.dtype), y >= 0)


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Mean squared error per example, [B]."""
    y = batch["y"]
    error = jnp.square(outputs.reshape(y.shape) - y)
    return error.reshape(y.shape[0], -1).mean(1)


def blank(batch: Batch) -> Batch:
    """The batch with zeros in the rows that the mask leaves out."""
    mask = mask_of(batch)

    def clean(a):
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.zeros((), a.dtype))

    return {k: a if k == "mask" else clean(a) for k, a in batch.items()}


def mask_of(batch: Batch) -> jax.Array:
    """The mask [B] of a batch; all True where it has none."""
    return batch["mask"] if "mask" in batch else jnp.ones(next(iter(batch.values())).shape[:1], bool)


def _over_positions(values: jax.Array, keep: jax.Array) -> jax.Array:
    axes = tuple(range(1, values.ndim))
    return jnp.where(keep, values, 0).sum(axes) / jnp.maximum(keep.sum(axes), 1)


def _pixels(x: jax.Array, normalize: tuple[Any, Any] | None) -> jax.Array:
    x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
    return x if normalize is None else (x - jnp.asarray(normalize[0], x.dtype)) / jnp.asarray(normalize[1], x.dtype)


def _variables(params: Tree) -> dict[str, Tree]:
    if isinstance(params, Mapping) and set(params) == {"params", "stats"}:
        return {"params": params["params"], "batch_stats": jax.lax.stop_gradient(params["stats"])}
    return {"params": params}


def _caller(module: nn.Module, names: Sequence[str], normalize: tuple[Any, Any] | None) -> Callable[..., tuple[Tree, Tree]]:
    """(method, params, batch, key) -> (outputs, new statistics or ())."""

    def call(method: str, params: Tree, batch: Batch, key: Key | None) -> tuple[Tree, Tree]:
        mask, clean, variables = mask_of(batch), blank(batch), _variables(params)
        arrays = [_pixels(clean[n], normalize) for n in names]
        accepted = inspect.signature(getattr(type(module), method)).parameters
        told = {"train": key is not None, "mask": mask | ~mask.any()}  # an empty batch counts as full, its statistics are dropped
        options = {"rngs": {} if key is None else {"dropout": key}, "method": method, **{k: v for k, v in told.items() if k in accepted}}
        stats = variables.get("batch_stats", ())
        if key is None or not jax.tree.leaves(stats):
            return module.apply(variables, *arrays, **options), stats
        outputs, new = module.apply(variables, *arrays, mutable=["batch_stats"], **options)
        return outputs, jax.tree.map(lambda a, b: jnp.where(mask.any(), a, b), new["batch_stats"], stats)

    return call
