"""Closed forms of quadratic losses, against numpy; the losses that are not."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny

from fedjax_lab import models
from fedjax_lab.data.quadratic import quadratic_task
from fedjax_lab.parts.solvers.kmeans import kmeans
from fedjax_lab.parts.solvers.quadratic import quadratic
from fedjax_lab.types import Aux, ClientData, Population, Stream, View

KEY = jax.random.key(0)
SIZE = np.array([4, 0, 7], np.int32)


def people(inputs=3):
    rng = np.random.default_rng(1)
    train = Stream({"x": rng.normal(size=(11, inputs)).astype(np.float32), "y": rng.normal(size=11).astype(np.float32)},
                   (np.cumsum(SIZE) - SIZE).astype(np.int32), SIZE)
    return Population(train, train, np.zeros((3, 0), np.float32))


def client(given, i):
    view = View(jax.tree.map(jnp.asarray, given.train), i, int(given.train.size.max()))
    return ClientData(i, jnp.int32(0), view, view, jnp.zeros(0), jnp.int32(1))


def test_linear_regression_with_a_bias():
    given = people()
    task = models.build("linreg", {k: v[:1] for k, v in given.train.examples.items()}, 1, title="line")
    params = task.init(KEY)
    for i, rows in enumerate((slice(0, 4), slice(4, 4), slice(4, 11))):
        f = jax.jit(lambda i: quadratic("own", KEY, task, params, client(given, i)))(i)
        x, y = given.train.examples["x"][rows], given.train.examples["y"][rows]
        x, n = np.concatenate([np.ones((len(x), 1)), x], 1), max(len(x), 1)  # the bias comes first
        np.testing.assert_allclose(f.hessian, 2 * x.T @ x / n, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(f.linear, 2 * x.T @ y / n, rtol=1e-5, atol=1e-5)
        v, rho, scale = np.arange(4.0), 0.3, 2.0
        least = np.linalg.solve(scale * 2 * x.T @ x / n + rho * np.eye(4), scale * 2 * x.T @ y / n + v)
        np.testing.assert_allclose(f.proximal(scale, rho, jnp.asarray(v, jnp.float32)), least, rtol=1e-4, atol=1e-4)


def test_what_is_quadratic_passes_and_what_is_not_is_refused():
    def ask(task, given):
        jax.eval_shape(lambda i: quadratic("own", KEY, task, task.init(KEY), client(given, i)), jnp.int32(0))

    rows = Stream({k: np.ones((11, 3), np.float32) for k in "ao"}, *people().train[1:3])
    ask(quadratic_task(3, noise=0.5), people()._replace(train=rows))
    ask(tiny.linear_task(), tiny.population())
    line = models.build("linreg", {k: v[:1] for k, v in people().train.examples.items()}, 1, title="line")
    bent = line._replace(name="bent", loss=lambda p, b, key: (line.loss(p, b, key)[0] ** 2, Aux()))
    kinked = line._replace(name="kinked", loss=lambda p, b, key: (jnp.abs(line.apply(p, b)[:, 0] - b["y"]).mean(), Aux()))
    for task, given in ((tiny.task(), tiny.population()), (bent, people()), (kinked, people())):
        with pytest.raises(ValueError, match=f"'own' .*quadratic.*task '{task.name}'"):
            ask(task, given)


def test_clusters_are_those_of_the_nearest_means_and_separate_what_is_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    found = np.asarray(kmeans(jax.random.key(1), jnp.asarray(x), 4, 100))
    means = np.stack([x[found == c].mean(0) for c in range(4)])
    np.testing.assert_array_equal(((x[:, None] - means) ** 2).sum(-1).argmin(1), found)
    owner = np.arange(60) % 5
    centers = 10 * np.concatenate([np.eye(3), np.zeros((1, 3)), -np.ones((1, 3))]).astype(np.float32)
    apart = np.asarray(kmeans(jax.random.key(2), jnp.asarray(0.1 * x + centers[owner]), 5, 0))  # the first centers are enough
    assert len({*zip(owner.tolist(), apart.tolist(), strict=True)}) == len({*apart.tolist()}) == 5
    same = np.asarray(kmeans(jax.random.key(3), jnp.zeros((6, 2)), 3, 5))
    assert len({*same.tolist()}) == 1
