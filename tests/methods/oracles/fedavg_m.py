"""FedAvg-M: v = beta gradient + (1 - beta) g; g <- mean_S (x - y_i) / (eta K_i); x <- x - server_lr g.

By default server_lr = eta K. At the start g = 0, or the mean of the clients' gradients at x^0.
"""
from __future__ import annotations

import numpy as np
from oracles._common import first_gradients, mean_steps, shares


def phase(start="zero", **options) -> int:
    """Which exchange of a round trains: the first gradients are asked for in one before it."""
    return int(start == "gradient")


def run(problem, turns, *, lr, beta=0.1, server_lr=None, start="zero", weighting="uniform"):
    x, g, history = problem.start, np.zeros_like(problem.start), []
    if start == "gradient":
        g = np.mean(first_gradients(problem), 0)
    for cohort in turns:
        direction, weights = np.zeros_like(x), shares(problem, cohort, weighting)
        for turn, p in zip(cohort, weights):
            y = x
            for rows in turn.batches:
                y = y - lr * (beta * problem.gradient(y, rows) + (1 - beta) * g)
            direction += p * (x - y) / (lr * len(turn.batches))
        g = direction
        x = x - (server_lr or lr * mean_steps(cohort, weights)) * g
        history.append(x)
    return history
