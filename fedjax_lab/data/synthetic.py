"""Generators with documented ground truth. Their seed is their own: the run's seed leaves the data alone."""
from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from fedjax_lab.data import source
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.spec import Count, NonNegative, Range


def synthetic(alpha: NonNegative = 1.0, beta: NonNegative = 1.0, *, clients: Count = 30, size: Count | None = None,
              test_share: Annotated[float, Range(0, 1, "both")] = 0.2, seed: int = 0) -> Source:
    """Synthetic(alpha, beta) of Li et al. 2020 (FedProx), section 5.1: 60 features, 10 classes, natural clients.

    For client k: u_k ~ N(0, alpha), B_k ~ N(0, beta) (standard deviations, as in the released code); W_k [60, 10], b_k [10] ~
    N(u_k, 1); v_k [60] ~ N(B_k, 1); x ~ N(v_k, diag(j**-1.2)), y = argmax(x W_k + b_k). alpha makes models differ between
    clients, beta makes features differ. Sizes are 50 + lognormal(4, 2), then split into train and test inside each client.
    Ground truth: `truth["weights"]` [N, 60, 10] and `truth["bias"]` [N, 10].

    Args:
      alpha: how much the true models differ between clients.
      beta: how much the features differ between clients.
      clients: number of natural clients.
      size: examples of each client, train and test together; lognormal if none.
      test_share: share of each client's examples that is test.
      seed: of the generator.
    """
    generator = np.random.default_rng([1, seed])
    total = np.full(clients, size) if size else generator.lognormal(4, 2, clients).astype(np.int64) + 50
    u = generator.normal(0, alpha, clients)[:, None]
    center = generator.normal(0, beta, clients)[:, None] + generator.normal(size=(clients, 60))
    weights = (u[:, :, None] + generator.normal(size=(clients, 60, 10))).astype(np.float32)
    bias = (u + generator.normal(size=(clients, 10))).astype(np.float32)
    owner = np.repeat(np.arange(clients), total)
    spread = np.arange(1, 61) ** -0.6
    x = (center[owner] + spread * generator.normal(size=(len(owner), 60))).astype(np.float32)
    y = np.concatenate([np.argmax(x[owner == k] @ weights[k] + bias[k], 1) for k in range(clients)]).astype(np.int32)
    return by_client("synthetic", {"x": x, "y": y}, owner, 10, test_share, {"weights": weights, "bias": bias},
                     alpha=alpha, beta=beta, clients=clients, seed=seed)


def by_client(name: str, arrays: Arrays, owner: np.ndarray, classes: int, test_share: float, truth: Arrays,
              **more: Any) -> Source:
    """A source of natural clients in which the last examples of each client, `test_share` of them and at least one, are its test.

    A client with a single example keeps it for training.
    """
    size = np.bincount(owner)
    test_size = np.minimum(np.maximum(np.round(test_share * size), 1), size - 1).astype(np.int64)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
    test = place >= np.repeat(size - test_size, size)
    train_side, test_side = ({field: array[side] for field, array in arrays.items()} for side in (~test, test))
    return source.make(name, train_side, test_side, classes, {"client": owner[~test]}, {"client": owner[test]}, truth, **more)


def regression(clients: Count = 20, *, dim: Count = 10, size: Count = 50, spread: NonNegative = 1.0, noise: NonNegative = 0.1,
               test_share: Annotated[float, Range(0, 1, "both")] = 0.2, seed: int = 0) -> Source:
    """Linear regression: client k has w_k = w + spread * N(0, I), x ~ N(0, I), y = x w_k + noise * N(0, 1); natural clients.

    Ground truth: `truth["weights"]` [N, dim], and `truth["optimum"]` [dim], the least squares solution of all training examples.

    Args:
      clients: number of clients.
      dim: number of features.
      size: examples of each client, train and test together.
      spread: how much the clients' weights differ.
      noise: standard deviation of the targets.
      test_share: share of each client's examples that is test.
      seed: of the generator.
    """
    generator = np.random.default_rng([3, seed])
    owner, weights, x = _linear(generator, clients, dim, size, spread)
    y = np.einsum("md,md->m", x, weights[owner]) + noise * generator.normal(size=len(x))
    made = by_client("regression", {"x": x, "y": y.astype(np.float32)}, owner, 0, test_share, {"weights": weights},
                     clients=clients,
                     dim=dim, seed=seed)
    best = np.linalg.lstsq(made.train["x"].astype(np.float64), made.train["y"].astype(np.float64), rcond=None)[0]
    return made._replace(truth={**made.truth, "optimum": best})


def logistic(clients: Count = 20, *, dim: Count = 10, size: Count = 50, spread: NonNegative = 1.0,
             test_share: Annotated[float, Range(0, 1, "both")] = 0.2, seed: int = 0) -> Source:
    """Logistic regression: as `regression`, with y ~ Bernoulli(sigmoid(x w_k)), classes 0 and 1.

    Ground truth: `truth["weights"]` [N, dim].

    Args:
      clients: number of clients.
      dim: number of features.
      size: examples of each client, train and test together.
      spread: how much the clients' weights differ.
      test_share: share of each client's examples that is test.
      seed: of the generator.
    """
    generator = np.random.default_rng([4, seed])
    owner, weights, x = _linear(generator, clients, dim, size, spread)
    chance = 1 / (1 + np.exp(-np.einsum("md,md->m", x, weights[owner])))
    y = (generator.random(len(x)) < chance).astype(np.int32)
    return by_client("logistic", {"x": x, "y": y}, owner, 2, test_share, {"weights": weights}, clients=clients, dim=dim,
                     seed=seed)


def _linear(generator: np.random.Generator, clients: int, dim: int, size: int, spread: float
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owners [M], weights [N, dim] and features [M, dim]."""
    weights = generator.normal(size=dim) + spread * generator.normal(size=(clients, dim))
    return np.repeat(np.arange(clients), size), weights, generator.normal(size=(clients * size, dim)).astype(np.float32)
