"""Randomness and whole numbers on the host."""
from __future__ import annotations

import zlib
from typing import Literal

import jax
import numpy as np

from fedjax_lab.types import Key

Law = Literal["equal", "lognormal", "powerlaw", "dirichlet"]


def rng(key: Key, purpose: str = "") -> np.random.Generator:
    """A numpy generator from a jax key, pure in (key, purpose)."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32(purpose.encode())])


def apportion(weights: np.ndarray, total: int, low: int | np.ndarray = 0, high: int | np.ndarray | None = None) -> np.ndarray:
    """Whole numbers that sum to `total`, proportional to the weights within the bounds (largest remainders).

    Args:
      weights: [N], non-negative.
      total: the sum; between the sums of the bounds.
      low, high: bounds, scalar or [N]; no upper bound by default.

    Returns:
      int64 [N].
    """
    weights = np.maximum(np.asarray(weights, np.float64) / max(np.max(weights), 1e-300), 1e-12)
    low, high = (np.broadcast_to(np.asarray(b, np.float64), weights.shape) for b in (low, total if high is None else high))
    if not low.sum() <= total <= high.sum():
        raise ValueError(f"cannot apportion {total} with bounds that sum to {low.sum():g} and {high.sum():g}")
    below, above = 0.0, 1.0
    while np.clip(above * weights, low, high).sum() < total:
        below, above = above, above * 8
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if np.clip(middle * weights, low, high).sum() < total else (below, middle)
    share = np.clip(below * weights, low, high)
    whole = np.floor(share).astype(np.int64)
    rest, room = total - int(whole.sum()), np.flatnonzero(whole < high)
    whole[room[np.argsort((whole - share)[room], kind="stable")[:rest]]] += 1
    return whole


def sizes(law: Law, skew: float, examples: int, clients: int, generator: np.random.Generator) -> np.ndarray:
    """Client sizes, each at least one, that sum to `examples`. A larger skew is always more unequal, and 0 is equal.

    Args:
      law: "equal"; "lognormal" weights exp(skew * N(0, 1)); "powerlaw" weights rank**-skew in random order; "dirichlet" weights
        ~ Dirichlet(1 / skew).
      skew: see law.

    Returns:
      int64 [clients].
    """
    if law == "equal" or skew == 0:
        weights = np.ones(clients)
    elif law == "lognormal":
        weights = np.exp(skew * generator.normal(size=clients))
    elif law == "powerlaw":
        weights = generator.permutation(np.arange(1.0, clients + 1) ** -skew)
    else:
        logs = log_gamma(1 / skew, (clients,), generator)
        weights = np.exp(logs - logs.max())
    return apportion(weights, examples, low=1)


def log_gamma(shape: float | np.ndarray, size: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Logarithms of Gamma(shape) draws, finite however small the shape (where numpy's dirichlet gives zeros or NaN)."""
    return np.log(generator.gamma(shape + 1.0, size=size)) + np.log(1 - generator.random(size)) / shape
