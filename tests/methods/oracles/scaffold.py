"""SCAFFOLD: v = gradient - c_i + c; c_i+ = c_i - c + Delta_i / (K eta) (option II) or the full gradient at x (option I);
x <- x - server_lr mean_S Delta_i; c <- c + (1/N) sum_S (c_i+ - c_i).
"""
from __future__ import annotations

import numpy as np


def run(problem, turns, *, lr, server_lr=1.0, option="II"):
    x, history = problem.start, []
    c, rows_of = np.zeros_like(x), [np.zeros_like(x) for _ in range(problem.clients)]
    for cohort in turns:
        delta, drift = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            y, c_i = x, rows_of[turn.client]
            for rows in turn.batches:
                y = y - lr * (problem.gradient(y, rows) - c_i + c)
            if option == "II":
                new = c_i - c + (x - y) / (len(turn.batches) * lr)
            else:
                new = problem.gradient(x, problem.rows(turn.client))
            delta += (x - y) / len(cohort)
            drift += (new - c_i) / problem.clients
            rows_of[turn.client] = new
        x, c = x - server_lr * delta, c + drift
        np.testing.assert_allclose(c, np.mean(rows_of, 0), atol=1e-12)  # c is the mean over ALL clients
        history.append(x)
    return history
