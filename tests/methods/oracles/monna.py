"""MoNNA: m_i <- beta m_i + (1 - beta) g_i, y_i = x_i - lr m_i; x_i <- the mean of what i hears, without the f farthest from y_i."""
from __future__ import annotations

import math

import numpy as np


def run(problem, turns, *, lr, matrices, beta=0.99, share=0.2):
    n = problem.clients
    x, m, history = np.tile(problem.start, (n, 1)), np.zeros((n, len(problem.start))), []
    for cohort, w in zip(turns, matrices, strict=True):
        active, y = [turn.client for turn in cohort], x.copy()
        for turn in cohort:
            i = turn.client
            for rows in turn.batches:
                m[i] = beta * m[i] + (1 - beta) * problem.gradient(y[i], rows)
                y[i] = y[i] - lr * m[i]
        for i in active:
            heard = sorted((j for j in active if j == i or w[i, j] > 0), key=lambda j: np.linalg.norm(y[j] - y[i]))
            x[i] = y[heard[: max(1, len(heard) - math.ceil(share * len(heard) - 1e-6))]].mean(0)
        history.append(x.ravel().copy())
    return history
