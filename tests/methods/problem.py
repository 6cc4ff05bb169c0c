"""Tiny unbalanced problems that the oracles share: a tanh classifier, and a bowl and a regression with their gradients by hand.

An oracle sees flat float64 vectors only: `start`, `gradient(y, rows)` and the like.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import plan
from jax.flatten_util import ravel_pytree

from fedjax_lab import models
from fedjax_lab.data import quadratic
from fedjax_lab.types import Aux, Population, Stream, Task

SIZES = np.array([3, 17, 1, 8, 12, 5, 10])
COHORT = 4
ROOT = 7
FEATURES, HIDDEN, CLASSES, DIM, PUBLIC, ALIGNED = 5, 4, 3, 6, 15, 6


class Problem(NamedTuple):
    """What an oracle may ask.

    start: [d] the first parameters, flat;  size: [N] examples per client;  gradient: (y [d], rows) -> [d], of the mean loss;
    loss: (y, rows) -> float;  features: (y, rows) -> [B, F];  pullback: (y, rows, cotangent [B, F]) -> [d];
    curvature: (y, rows, z [d]) -> [d], Hessian times z;  rows: (client) -> all of the client's rows.
    """

    task: Task
    population: Population
    start: np.ndarray
    size: np.ndarray
    gradient: Callable
    loss: Callable
    features: Callable | None
    pullback: Callable | None
    curvature: Callable

    @property
    def public(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [P, 5] and labels [P] that everybody has."""
        return self.population.public["x"].astype(np.float64), self.population.public["y"]

    @property
    def clients(self) -> int:
        return len(self.size)

    def rows(self, client: int) -> np.ndarray:
        first = int(self.size[:client].sum())
        return np.arange(first, first + self.size[client])

    def examples(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [B, 5] and labels [B] of the classifier."""
        x, y = (self.population.train.examples[name] for name in "xy")
        return x[rows].astype(np.float64), y[rows]

    def tensors(self, y: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors that the flat y consists of, by name; `flat` undoes it."""
        shapes = _shapes(self.task.init)
        parts = np.split(y, np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    def flat(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])


@functools.cache
def _shapes(init: Callable) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(init, jax.random.key(0)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def classifier_task() -> Task:
    """x [B, 5] -> tanh [B, 4] -> logits [B, 3], with the cross entropy."""

    def init(key):
        a, b = jax.random.split(key)
        return {"w1": 0.6 * jax.random.normal(a, (FEATURES, HIDDEN)), "b1": jnp.zeros(HIDDEN),
                "w2": 0.6 * jax.random.normal(b, (HIDDEN, CLASSES)), "b2": jnp.zeros(CLASSES)}

    def features(params, batch, key=None):
        return jnp.tanh(batch["x"] @ params["w1"] + params["b1"])

    def head(params, z):
        return z @ params["w2"] + params["b2"]

    def apply(params, batch, key=None):
        return head(params, features(params, batch))

    def metrics(outputs, batch):
        logp = jax.nn.log_softmax(outputs)
        nll = -jnp.take_along_axis(logp, batch["y"][:, None], 1)[:, 0]
        return {"loss": nll, "accuracy": (outputs.argmax(1) == batch["y"]).astype(jnp.float32)}

    def loss(params, batch, key):
        nll, mask = metrics(apply(params, batch), batch)["loss"], batch["mask"]
        return jnp.sum(jnp.where(mask, nll, 0)) / jnp.maximum(mask.sum(), 1), Aux()

    def taps(params, batch):
        return {"w1": batch["x"][:, None], "w2": features(params, batch)[:, None]}

    return Task("tiny", init, apply, loss, metrics, features, head, taps)


class Normed(nn.Module):
    """x [B, 5] -> batch normalization of 4 features -> tanh -> logits [B, 3]."""

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        z = nn.Dense(HIDDEN)(x)
        z = nn.BatchNorm(use_running_average=not train, momentum=0.9)(z, mask=None if mask is None else mask[:, None])
        return nn.Dense(CLASSES)(jnp.tanh(z))


def _population(examples: dict[str, np.ndarray], counts: np.ndarray, public: dict[str, np.ndarray] | None = None, sizes: np.ndarray = SIZES) -> Population:
    stream = Stream(examples, (np.cumsum(sizes) - sizes).astype(np.int32), sizes.astype(np.int32))
    return Population(stream, stream, counts.astype(np.float32), public=public or {})


@functools.cache
def classifier() -> Problem:
    """Label-skewed clients."""
    return _labeled(classifier_task())


@functools.cache
def normed() -> Problem:
    """The classifier's clients, for a model with batch normalization in training mode."""
    example = {"x": np.zeros((1, FEATURES), np.float32), "y": np.zeros(1, np.int32), "mask": np.ones(1, bool)}
    return _labeled(models.classification("normed", Normed(), example), jax.random.key(0))


@functools.cache
def semi() -> Problem:
    """The classifier's clients, of which some have labels for a part of their examples, one for all and one for none."""
    whole = classifier()
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    labeled = np.random.default_rng(6).random(len(owner)) < 0.4
    labeled[owner == 3], labeled[owner == 5] = True, False
    train = whole.population.train
    return whole._replace(population=whole.population._replace(train=train._replace(examples={**train.examples, "labeled": labeled})))


@functools.cache
def parties() -> Problem:
    """Parties with features of their own of the same six examples, whose labels the server has, and of further ones."""
    whole = _labeled(classifier_task(), sizes=SIZES + ALIGNED)
    train, rng, nobody = whole.population.train, np.random.default_rng(8), np.zeros(len(SIZES), np.int32)
    tests = {"x": rng.normal(size=(9, len(SIZES), FEATURES)).astype(np.float32), "y": rng.integers(0, CLASSES, 9).astype(np.int32)}
    unlabeled = train._replace(examples={**train.examples, "y": np.full_like(train.examples["y"], -1)})
    people = Population(unlabeled, Stream(tests, nobody, nobody), 0 * whole.population.counts,
                        public={"y": np.arange(ALIGNED, dtype=np.int32) % CLASSES})
    return whole._replace(population=people)


def _labeled(task: Task, key: jax.Array | None = None, sizes: np.ndarray = SIZES) -> Problem:
    """Gradients by jax.grad of the task's loss, one client's batch at a time, in the precision of its parameters."""
    rng = np.random.default_rng(3)
    m, n = int(sizes.sum()), len(sizes)
    owner = np.repeat(np.arange(n), sizes)
    y = np.array([rng.choice(CLASSES, p=np.roll([0.7, 0.2, 0.1], i)) for i in owner], np.int32)
    noise, centers = rng.normal(size=(m, FEATURES)), 1.2 * rng.normal(size=(CLASSES, FEATURES))
    x = (noise + centers[y]).astype(np.float32)
    of_all = rng.integers(0, CLASSES, PUBLIC).astype(np.int32)
    public = {"x": (rng.normal(size=(PUBLIC, FEATURES)) + centers[of_all]).astype(np.float32), "y": of_all}
    counts = np.stack([np.bincount(y[owner == i], minlength=CLASSES) for i in range(n)])
    first = plan.first_params(task, jax.random.key(ROOT))
    flat, unravel = ravel_pytree(first)
    width = int(sizes.max())

    def batch(rows):
        at = np.resize(rows, width)
        return {"x": x[at], "y": y[at], "mask": np.arange(width) < len(rows)}

    def scalar(v, b):
        return task.loss(unravel(v), b, key)[0]

    def feature(v, b):
        return task.features(unravel(v), b)

    loss, grad, z = jax.jit(scalar), jax.jit(jax.grad(scalar)), jax.jit(feature)
    pull = jax.jit(lambda v, b, c: jax.vjp(lambda u: feature(u, b), v)[1](c)[0])
    hvp = jax.jit(lambda v, b, t: jax.jvp(lambda u: jax.grad(scalar)(u, b), (v,), (t,))[1])

    def as_drawn(a):
        return np.asarray(a, flat.dtype)

    def double(a):
        return np.asarray(a, np.float64)

    def pullback(v, rows, cotangent):
        padded = np.zeros((width, HIDDEN), flat.dtype)
        padded[: len(rows)] = cotangent
        return double(pull(as_drawn(v), batch(rows), padded))

    return Problem(
        task, _population({"x": x, "y": y}, counts, public, sizes), double(flat), sizes,
        gradient=lambda v, rows: double(grad(as_drawn(v), batch(rows))),
        loss=lambda v, rows: float(loss(as_drawn(v), batch(rows))),
        features=lambda v, rows: double(z(as_drawn(v), batch(rows)))[: len(rows)],
        pullback=pullback,
        curvature=lambda v, rows, t: double(hvp(as_drawn(v), batch(rows), as_drawn(t))),
    )


@functools.cache
def bowl() -> Problem:
    """f_i(x) = mean over its rows of 1/2 (x - o)^T diag(a) (x - o), with everything by hand in float64."""
    rng = np.random.default_rng(4)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    a = np.exp(rng.uniform(-1, 1, (len(owner), DIM))).astype(np.float32)
    o = (rng.normal(size=(len(SIZES), DIM))[owner] + 0.3 * rng.normal(size=a.shape)).astype(np.float32)
    task = quadratic.quadratic_task(DIM, start=0.5)
    a_, o_ = a.astype(np.float64), o.astype(np.float64)
    return Problem(
        task, _population({"a": a, "o": o}, np.zeros((len(SIZES), 0))), np.full(DIM, 0.5), SIZES,
        gradient=lambda v, rows: (a_[rows] * (v - o_[rows])).mean(0),
        loss=lambda v, rows: float((0.5 * a_[rows] * (v - o_[rows]) ** 2).sum(1).mean()),
        features=None, pullback=None,
        curvature=lambda v, rows, t: a_[rows].mean(0) * t,
    )


@functools.cache
def regression() -> Problem:
    """f_i(w) = mean over its rows of (y - x . w)^2, where three of the clients have fewer rows than w has entries."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(SIZES.sum(), DIM)).astype(np.float32)
    y = (x @ np.linspace(-1, 1, DIM) + 0.3 * rng.normal(size=len(x))).astype(np.float32)

    def apply(params, batch, key=None):
        return batch["x"] @ params["w"]

    def metrics(outputs, batch):
        return {"loss": (outputs - batch["y"]) ** 2}

    def loss(params, batch, key):
        error, mask = metrics(apply(params, batch), batch)["loss"], batch["mask"]
        return jnp.sum(jnp.where(mask, error, 0)) / jnp.maximum(mask.sum(), 1), Aux()

    x_, y_ = x.astype(np.float64), y.astype(np.float64)
    task = Task("line", lambda key: {"w": jnp.full(DIM, 0.5)}, apply, loss, metrics)
    return Problem(
        task, _population({"x": x, "y": y}, np.zeros((len(SIZES), 0))), np.full(DIM, 0.5), SIZES,
        gradient=lambda v, rows: 2 * x_[rows].T @ (x_[rows] @ v - y_[rows]) / len(rows),
        loss=lambda v, rows: float(((x_[rows] @ v - y_[rows]) ** 2).mean()),
        features=None, pullback=None,
        curvature=lambda v, rows, t: 2 * x_[rows].T @ (x_[rows] @ t) / len(rows),
    )


PROBLEMS = {"classifier": classifier, "bowl": bowl, "regression": regression}
