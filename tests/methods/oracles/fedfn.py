"""FedFN: FedAvg of the tanh classifier whose features z [F] become sqrt(F) z / |z|, or c z / |z|, before the head, whose logits are
divided by tau.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares
from oracles._tanh import head_slope, low, low_slope


def slope(problem, y, rows, length, tau):
    """The gradient of the mean cross entropy."""
    inputs, labels = problem.examples(rows)
    z, p = low(problem, y, inputs), problem.tensors(y)
    size = np.linalg.norm(z, axis=1, keepdims=True)
    c, n = length or np.sqrt(z.shape[1]), z / size
    cooled = problem.flat({**p, "w2": p["w2"] / tau, "b2": p["b2"] / tau})
    head, du = head_slope(problem, cooled, c * n, np.eye(len(p["b2"]))[labels])
    dz = c * (du - n * (n * du).sum(1, keepdims=True)) / size
    return head / tau + low_slope(problem, y, inputs, z, dz)


def run(problem, turns, *, lr, length=0.0, tau=1.0, weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = x
            for rows in turn.batches:
                y = y - lr * slope(problem, y, rows, length, tau)
            change += p * (y - x)
        x = x + change
        history.append(x)
    return history
