"""SCAFFOLD-M: v = beta (gradient - c_i + c) + (1 - beta) g; c_i+ = the mean of the RAW gradients of the local steps;
g <- mean_S (x - y_i) / (eta K_i); c <- c + (1/N) sum_S (c_i+ - c_i); x <- x - server_lr g, server_lr = eta K by default.

At the start c_i = 0, or client i's gradient at x^0; g = 0, or their mean.
"""
from __future__ import annotations

import numpy as np
from oracles._common import first_gradients, mean_steps, table


def phase(start="zero", **options) -> int:
    """Which exchange of a round trains: the first gradients are asked for in one before it."""
    return int(start == "gradient")


def run(problem, turns, *, lr, beta=0.1, server_lr=None, start="zero"):
    x, history = problem.start, []
    variates = first_gradients(problem) if start == "gradient" else table(problem)
    c = g = np.mean(variates, 0)
    for cohort in turns:
        direction, drift = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            y, c_i, seen = x, variates[turn.client], []
            for rows in turn.batches:
                seen.append(problem.gradient(y, rows))
                y = y - lr * (beta * (seen[-1] - c_i + c) + (1 - beta) * g)
            new = np.mean(seen, 0)
            direction += (x - y) / (lr * len(turn.batches)) / len(cohort)
            drift += (new - c_i) / problem.clients
            variates[turn.client] = new
        g, c = direction, c + drift
        x = x - (server_lr or lr * mean_steps(cohort)) * g
        np.testing.assert_allclose(c, np.mean(variates, 0), atol=1e-12)
        history.append(x)
    return history
