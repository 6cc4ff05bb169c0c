"""FedAvg-M-VR: v = gradient(y; b) + (1 - beta) (g - gradient(x_before; b)), the same batch twice;
g <- mean_S (x - y_i) / (eta K_i); x_before <- x; x <- x - server_lr g, server_lr = eta K by default.

At the start x_before = x^0, and g is the mean of the clients' gradients there (or zero).
"""
from __future__ import annotations

import numpy as np
from oracles._common import first_gradients, mean_steps, shares


def phase(start="gradient", **options) -> int:
    """Which exchange of a round trains: the first gradients are asked for in one before it."""
    return int(start == "gradient")


def run(problem, turns, *, lr, beta=0.1, server_lr=None, start="gradient", weighting="uniform"):
    x, before, history = problem.start, problem.start, []
    g = np.mean(first_gradients(problem), 0) if start == "gradient" else np.zeros_like(x)
    for cohort in turns:
        direction, weights = np.zeros_like(x), shares(problem, cohort, weighting)
        for turn, p in zip(cohort, weights):
            y = x
            for rows in turn.batches:
                y = y - lr * (problem.gradient(y, rows) + (1 - beta) * (g - problem.gradient(before, rows)))
            direction += p * (x - y) / (lr * len(turn.batches))
        g, before = direction, x
        x = x - (server_lr or lr * mean_steps(cohort, weights)) * g
        history.append(x)
    return history
