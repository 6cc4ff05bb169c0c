"""Quadratic clients with a known optimum: the test bench of every convergence claim.

Client i has f_i(x) = 1/2 (x - o_i)^T diag(a_i) (x - o_i). Its examples are rows (a, o), and f_i is the mean over its rows, so any
method trains on it unchanged, and the optimum is sum(a o) / sum(a) over the rows, in closed form.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.data import source
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.spec import Count, NonNegative
from fedjax_lab.types import Aux, Batch, Key, Task, Tree


def quadratic(clients: Count = 20, *, dim: Count = 10, spread: NonNegative = 5.0, curvature: NonNegative = 1.5, rows: Count = 1,
              scatter: NonNegative = 0.0, seed: int = 0) -> Source:
    """Clients with a_i = exp U(-curvature, curvature) [dim] and o_i = spread * N(0, I) [dim]; natural clients.

    The test set is the training set, so that the test loss is the global objective. Ground truth: `truth["optimum"]` [dim], where
    every example has the same weight, and `truth["minima"]` [N, dim], the clients' own.

    Args:
      clients: number of clients.
      dim: number of variables.
      spread: standard deviation of the clients' minima.
      curvature: range of the logarithm of the curvatures; 0 makes them one.
      rows: examples per client.
      scatter: standard deviation of a client's examples about its minimum (their mean is the minimum exactly).
      seed: of the generator.
    """
    generator = np.random.default_rng([2, seed])
    a = np.exp(generator.uniform(-curvature, curvature, (clients, 1, dim)))
    o = spread * generator.normal(size=(clients, 1, dim))
    noise = scatter * generator.normal(size=(clients, rows, dim))
    o = o + noise - noise.mean(1, keepdims=True)
    arrays = {"a": np.broadcast_to(a, o.shape).reshape(-1, dim).astype(np.float32), "o": o.reshape(-1, dim).astype(np.float32)}
    keys = {"client": np.repeat(np.arange(clients), rows)}
    truth = {"optimum": optimum(arrays), "minima": o.mean(1)}
    return source.make("quadratic", arrays, arrays, 0, keys, keys, truth, clients=clients, dim=dim, seed=seed)


def optimum(arrays: Arrays, weights: np.ndarray | None = None) -> np.ndarray:
    """The minimum of the weighted mean of rows (a, o), float64 [dim].

    Args:
      arrays: a [M, dim] and o [M, dim].
      weights: [M], one per row, equal by default.
    """
    a, o = np.asarray(arrays["a"], np.float64), np.asarray(arrays["o"], np.float64)
    scaled = a if weights is None else a * np.asarray(weights, np.float64)[:, None]
    return (scaled * o).sum(0) / scaled.sum(0)


def quadratic_task(dim: int = 10, *, noise: NonNegative = 0.0, start: float = 0.0) -> Task:
    """The Task of batches with "a" and "o" [B, dim]. Parameters are {"x": [dim]}, outputs x for each example.

    Args:
      dim: number of variables.
      noise: standard deviation of Gaussian noise added to each coordinate of every gradient, drawn from the loss's key; the value
        of the loss is left alone.
      start: value of every coordinate of the first x.
    """

    def apply(params: Tree, batch: Batch, key: Key | None = None) -> jax.Array:
        return jnp.broadcast_to(params["x"], batch["o"].shape)

    def metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": 0.5 * (batch["a"] * (outputs - batch["o"]) ** 2).sum(-1)}

    def loss(params: Tree, batch: Batch, key: Key) -> tuple[jax.Array, Aux]:
        each = metrics(apply(params, batch), batch)["loss"]
        mask = batch["mask"]
        value = jnp.where(mask, each, 0).sum() / jnp.maximum(mask.sum(), 1)
        if noise:
            x = params["x"]
            xi = noise * jax.random.normal(key, x.shape, x.dtype)
            value = value + jnp.where(mask.any(), xi @ (x - jax.lax.stop_gradient(x)), 0)
        return value, Aux()

    return Task("quadratic", lambda key: {"x": jnp.full((dim,), start, jnp.float32)}, apply, loss, metrics)
