"""SCAFFOLD-M-VR: v = gradient(y; b) - beta (c_i - c) + (1 - beta) (g - gradient(x_before; b)); c_i+ = the mean of the gradients
at the local iterates; c, g and x as in SCAFFOLD-M.

At the start c_i is client i's gradient at x^0, c = g = their mean (or all are zero).
"""
from __future__ import annotations

import numpy as np
from oracles._common import first_gradients, mean_steps, table


def phase(start="gradient", **options) -> int:
    """Which exchange of a round trains: the first gradients are asked for in one before it."""
    return int(start == "gradient")


def run(problem, turns, *, lr, beta=0.1, server_lr=None, start="gradient"):
    x, before, history = problem.start, problem.start, []
    variates = first_gradients(problem) if start == "gradient" else table(problem)
    c = g = np.mean(variates, 0)
    for cohort in turns:
        direction, drift = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            y, c_i, seen = x, variates[turn.client], []
            for rows in turn.batches:
                seen.append(problem.gradient(y, rows))
                y = y - lr * (seen[-1] - beta * (c_i - c) + (1 - beta) * (g - problem.gradient(before, rows)))
            new = np.mean(seen, 0)
            direction += (x - y) / (lr * len(turn.batches)) / len(cohort)
            drift += (new - c_i) / problem.clients
            variates[turn.client] = new
        g, c, before = direction, c + drift, x
        x = x - (server_lr or lr * mean_steps(cohort)) * g
        history.append(x)
    return history
