"""Task -> Task: the same model, whose large tensors are made of smaller ones that are trained in their place.

    hadamard   W = (X1 Y1^T) * (X2 Y2^T)           X_i [m, R], Y_i [n, R]; * entry by entry: 2 R (m + n) numbers, rank up to R^2
               a kernel [h, w, I, O] is W_1 * W_2, W_i[h, w, i, o] = sum_{a,b} T_i[a, b, h, w] O_i[a, o] I_i[b, i]:
               2 R (O + I + R h w) numbers
    shifted    W = W_1 * (W_2 + 1)                 so that W = W_1 where the second pair is zero
    low_rank   W = X Y^T with as many numbers      X [m, 2 R], Y [n, 2 R]; a kernel as [h w I, O]

The parameters hold {"one": {...}, "two": {...}} where the model has such a tensor.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.types import Key, Task, Tree

Form = Literal["hadamard", "shifted", "low_rank"]
Start = Literal["he", "matched"]


def through(task: Task, init: Callable[[Key], Tree], model: Callable[[Tree], Tree]) -> Task:
    """The task of other parameters: init draws them, and model(params) is what the task knows."""

    def on(function):
        return None if function is None else lambda params, *args, **more: function(model(params), *args, **more)

    return task._replace(init=init, apply=on(task.apply), loss=on(task.loss), features=on(task.features), head=on(task.head))


def rank(shape: tuple[int, ...], share: float) -> int:
    """R of a tensor of this shape: R_min + share (R_max - R_min), rounded, at least R_min = ceil(sqrt(min(m, n))), from which on W may
    have full rank; with R_max there are as many numbers as in the tensor."""
    *window, m, n = shape
    low, area, sides = math.ceil(math.sqrt(min(m, n))), math.prod(window), m + n
    if window:
        most = (math.sqrt(sides**2 + 2 * area**2 * m * n) - sides) / (2 * area)
    else:
        most = m * n / (2 * sides)
    return max(low, round((1 - share) * low + share * most))


def shapes(shape: tuple[int, ...], R: int, form: Form) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the factors of one half."""
    *window, m, n = shape
    if form == "low_rank":
        return {"x": (math.prod(window) * m, 2 * R), "y": (n, 2 * R)}
    return {"t": (R, R, *window), "o": (R, n), "i": (R, m)} if window else {"x": (m, R), "y": (n, R)}


def product(half: Mapping[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The tensor of this shape that one half makes."""
    if "t" in half:
        return jnp.einsum("abhw,ao,bi->hwio", half["t"], half["o"], half["i"])
    return (half["x"] @ half["y"].T).reshape(shape)


def factored(task: Task, share: float, *, form: Form, start: Start, ordinary: str) -> Task:
    """The task with factors for its matrices and kernels.

    Args:
      share: between the least rank and the one without saving; see `rank`.
      form: what the factors make; see above.
      start: he draws every factor with the variance 2 / (entries of a row), matched so that W has the variance of the model's own start.
      ordinary: tensors with this word in their path stay as they are.

    Raises:
      ValueError: no tensor is left.
    """
    like = jax.eval_shape(task.init, jax.random.key(0))

    def found(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return name if len(leaf.shape) in (2, 4) and ordinary not in name else ""

    names = jax.tree.map_with_path(found, like)
    if not any(jax.tree.leaves(names)):
        raise ValueError(f"the model has no matrix or kernel without '{ordinary}' in its name; there is nothing to factor")

    def drawn(key, name, leaf):
        if not name:
            return leaf
        R = rank(leaf.shape, share)
        halves = {h: shapes(leaf.shape, R, form) for h in (("one",) if form == "low_rank" else ("one", "two"))}
        terms, count = (2 * R, 2) if form == "low_rank" else (R ** (4 if leaf.ndim == 4 else 2), 6 if leaf.ndim == 4 else 4)
        deviation = (jnp.mean(leaf**2) / terms) ** (1 / (2 * count))

        def one(half, factor, shape):
            scale = jnp.sqrt(2 / math.prod(shape[1:])) if start == "he" else deviation
            return scale * jax.random.normal(keys.purpose(keys.purpose(key, name), f"{half}/{factor}"), shape, leaf.dtype)

        return {h: {f: one(h, f, shape) for f, shape in parts.items()} for h, parts in halves.items()}

    def made(name, leaf, part):
        if not name:
            return part
        one = product(part["one"], leaf.shape)
        return one if form == "low_rank" else one * (product(part["two"], leaf.shape) + (1 if form == "shifted" else 0))

    def init(key):
        return jax.tree.map(lambda name, leaf: drawn(key, name, leaf), names, task.init(key))

    return through(task, init, lambda params: jax.tree.map(made, names, like, params))
