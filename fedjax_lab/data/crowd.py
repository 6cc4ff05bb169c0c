"""A generated population of any number of clients, whose examples do not exist until they are asked for."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_lab.data import source
from fedjax_lab.data.source import Source
from fedjax_lab.spec import Count, NonNegative
from fedjax_lab.types import Population, Stream


class Generated:
    """An array [M, ...] whose rows are a function of their numbers; it is indexed like an array and holds nothing.

    Args:
      rows: (int64 [n]) -> [n, ...].
      shape, dtype: of the whole.
    """

    def __init__(self, rows: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: Any):
        self._rows, self.shape, self.dtype = rows, shape, np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> np.ndarray:
        at = np.arange(*at.indices(len(self))) if isinstance(at, slice) else np.asarray(at, np.int64)
        return self._rows(at.reshape(-1)).reshape(*at.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def crowd(clients: Count = 100_000, *, size: Count = 20, dim: Count = 32, classes: Count = 10, shift: NonNegative = 1.0,
          test: Count = 2000, seed: int = 0) -> Source:
    """Linear classification on as many clients as wanted: x = shift * m_k + e with m_k, e ~ N(0, I), y = argmax(x W).

    Client k owns the rows k * size .. (k + 1) * size - 1; each number is a hash of the seed and its place, so that a client is the same
    in a population of any size. Clients have no test examples of their own; the central test set is drawn from clients beyond the last.
    Ground truth: `truth["weights"]` [dim, classes].

    Args:
      clients: number of clients.
      size: training examples of each client.
      dim: number of features.
      classes: number of classes.
      shift: how far the clients' features lie apart.
      test: examples of the central test set.
      seed: of the generator.
    """
    weights = np.random.default_rng([5, seed]).normal(size=(dim, classes)).astype(np.float32)

    def x(rows: np.ndarray) -> np.ndarray:
        owner = rows // size
        return np.float32(shift) * normal(seed, 1, owner, dim) + normal(seed, 2, rows, dim)

    def y(rows: np.ndarray) -> np.ndarray:
        return np.argmax(x(rows) @ weights, 1).astype(np.int32)

    examples = {"x": Generated(x, (clients * size, dim), np.float32), "y": Generated(y, (clients * size,), np.int32)}
    beyond = (2**40 + np.arange(test, dtype=np.int64)) * size  # one example each of clients that nobody trains on
    central = {"x": x(beyond), "y": y(beyond)}
    nobody = np.broadcast_to(np.int32(0), (clients,))
    offset = Generated(lambda k: k * size, (clients,), np.int64)
    train = Stream(examples, offset, np.broadcast_to(np.int32(size), (clients,)))
    facts = {"source": "crowd", "clients": clients, "train_examples": clients * size, "test_examples": test, "classes": classes, "size": size,
             "dim": dim, "shift": shift, "seed": seed}
    ready = Population(train, Stream(central, nobody, nobody), np.broadcast_to(np.float32(0), (clients, 0)), facts)
    return source.Source("crowd", examples, central, classes, facts, truth={"weights": weights}, ready=ready)


def normal(seed: int, stream: int, rows: np.ndarray, dim: int) -> np.ndarray:
    """float32 [n, dim], standard normal numbers that depend on (seed, stream, row, column) alone: Box and Muller on splitmix64."""
    pairs = -(-dim // 2)
    base = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % 2**64)
    with np.errstate(over="ignore"):
        place = rows.astype(np.uint64)[:, None] * np.uint64(2**20) + np.arange(pairs, dtype=np.uint64)
        bits = _mixed(_mixed(place + base))
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(40)).astype(np.float32) + 0.5) / np.float32(2**24)))
    angle = np.float32(2 * np.pi / 2**24) * ((bits >> np.uint64(8)) & np.uint64(2**24 - 1)).astype(np.float32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :dim]


def _mixed(z: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
