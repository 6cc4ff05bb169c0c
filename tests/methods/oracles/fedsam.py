"""FedSAM: v = gradient at the ascended point, the same batch.

MoFedSAM: v = alpha of it + (1 - alpha) mean_S Delta / (eta K) of the last round.
"""
from __future__ import annotations

import numpy as np
from oracles._common import ascended, shares


def run(problem, turns, *, lr, rho=0.05, alpha=1.0, server_lr=1.0, weighting="examples"):
    x, momentum, history = problem.start, np.zeros_like(problem.start), []
    for cohort in turns:
        change, direction = np.zeros_like(x), np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = x
            for rows in turn.batches:
                y = y - lr * (alpha * problem.gradient(ascended(problem, y, rows, rho), rows) + (1 - alpha) * momentum)
            change += p * (y - x)
            direction += p * (x - y) / (lr * len(turn.batches))
        x, momentum = x + server_lr * change, direction
        history.append(x)
    return history
