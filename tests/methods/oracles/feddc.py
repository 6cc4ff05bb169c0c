"""FedDC: v = gradient + alpha (y - (x - h_i)) + c - c_i; h_i <- h_i + (y_K - x); c_i+ = c_i - c + Delta_i / (eta K);
x <- mean_S y_K + mean_N h_i; c <- c + (1/N) sum_S (c_i+ - c_i).
"""
from __future__ import annotations

import numpy as np
from oracles._common import table


def run(problem, turns, *, lr, alpha=0.1):
    x, c, history = problem.start, np.zeros_like(problem.start), []
    h, variates = table(problem), table(problem)
    for cohort in turns:
        locals_, drift = [], np.zeros_like(x)
        for turn in cohort:
            y, i = x, turn.client
            for rows in turn.batches:
                y = y - lr * (problem.gradient(y, rows) + alpha * (y - (x - h[i])) + c - variates[i])
            new = variates[i] - c + (x - y) / (lr * len(turn.batches))
            drift += (new - variates[i]) / problem.clients
            variates[i] = new
            h[i] = h[i] + (y - x)
            locals_.append(y)
        x, c = np.mean(locals_, 0) + np.mean(h, 0), c + drift
        history.append(x)
    return history
