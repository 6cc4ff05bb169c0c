"""FedWon: FedAvg whose gradients are cut, column by column of a matrix and vector by vector, to clip max(|W|, 1e-3), but for tensors with
`last` in their name.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def cut(W, G, clip):
    """The gradient G of W."""
    axis = 0 if W.ndim == 2 else None
    size, most = (np.linalg.norm(A, axis=axis, keepdims=True) for A in (G, W))
    most = clip * np.maximum(most, 1e-3)
    return np.where(size > most, G * most / np.maximum(size, 1e-30), G)


def run(problem, turns, *, lr, clip=0.64, last="head", weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = x
            for rows in turn.batches:
                W, G = problem.tensors(y), problem.tensors(problem.gradient(y, rows))
                G = {k: cut(W[k], g, clip) if clip and last not in k else g for k, g in G.items()}
                y = y - lr * problem.flat(G)
            change += p * (y - x)
        x = x + change
        history.append(x)
    return history
