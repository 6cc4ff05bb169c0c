"""FedCM: v = alpha gradient + (1 - alpha) g; g <- mean_S Delta_i / (eta K_i); x <- x - server_lr mean_S Delta_i."""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, alpha=0.1, server_lr=1.0, weighting="uniform"):
    x, g, history = problem.start, np.zeros_like(problem.start), []
    for cohort in turns:
        delta, direction = np.zeros_like(x), np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = x
            for rows in turn.batches:
                y = y - lr * (alpha * problem.gradient(y, rows) + (1 - alpha) * g)
            delta += p * (x - y)
            direction += p * (x - y) / (lr * len(turn.batches))
        x, g = x - server_lr * delta, direction
        history.append(x)
    return history
