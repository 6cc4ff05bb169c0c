"""q-FedAvg: F_k = loss at x on all of k's rows + 1e-10, L = 1 / lr, g_k = L (x - y_k), x <- x - sum F_k^q g_k / sum (q F_k^(q-1) |g_k|^2 +
L F_k^q), over the cohort.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd


def run(problem, turns, *, lr, q=1.0):
    x, history, L = problem.start, [], 1 / lr
    for cohort in turns:
        D, h = np.zeros_like(x), 0.0
        for turn in cohort:
            F = problem.loss(x, problem.rows(turn.client)) + 1e-10
            g = L * (x - sgd(problem, x, turn.batches, lr))
            D, h = D + F**q * g, h + q * F ** (q - 1) * (g @ g) + L * F**q
        x = x - D / h if cohort else x
        history.append(x)
    return history
