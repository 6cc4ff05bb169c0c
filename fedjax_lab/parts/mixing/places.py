"""Where nodes are: a file of positions, whom they have nearby, and how much less those count that are far."""
from __future__ import annotations

import numpy as np


def positions(file: str, nodes: int) -> np.ndarray:
    """float64 [N, p] of a text file with a line of p numbers, joined by commas, for each node.

    Raises:
      ValueError: there is no such file of finite numbers for so many nodes.
    """
    try:
        found = np.loadtxt(file, np.float64, delimiter=",", ndmin=2)
    except (OSError, ValueError):
        raise ValueError(f"'{file}' is no text file of positions; expected a line of numbers joined by commas for each of {nodes} nodes") from None
    if len(found) != nodes or not found.size or not np.isfinite(found).all():
        raise ValueError(f"'{file}' has finite positions {list(found.shape)}; expected a line for each of {nodes} nodes")
    return found


def distances(at: np.ndarray) -> np.ndarray:
    """float64 [N, N], between any two of positions [N, p].

    >>> distances(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
    [[0.0, 5.0], [5.0, 0.0]]
    """
    return np.linalg.norm(at[:, None] - at[None], axis=-1)


def nearest(at: np.ndarray, k: int) -> list[list[int]]:
    """The neighbors of every node: the k nearest to it, those with the smaller ids first where several are as near, and whoever has it among his."""
    apart = distances(at)
    np.fill_diagonal(apart, np.inf)
    chosen = np.zeros(apart.shape, bool)
    np.put_along_axis(chosen, np.argsort(apart, 1, kind="stable")[:, :k], True, 1)
    return [np.flatnonzero(row).tolist() for row in chosen | chosen.T]


__all__ = ["distances", "nearest", "positions"]
