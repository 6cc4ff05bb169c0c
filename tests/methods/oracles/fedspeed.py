"""FedSpeed: g = (1 - alpha) gradient(y) + alpha gradient(y+), y+ the ascended point, the same batch;
v = g + lam (y - x) + lam h_i; h_i <- h_i + (y_K - x); x <- mean_S y_K + mean_N h_i (released code) or mean_S (y_K + h_i) (paper).
"""
from __future__ import annotations

import numpy as np
from oracles._common import ascended, clipped, table


def run(problem, turns, *, lr, lam=0.1, rho=0.1, alpha=1.0, clip=10.0, dual_mean="all"):
    x, h, history = problem.start, table(problem), []
    for cohort in turns:
        locals_, heard = [], []
        for turn in cohort:
            y, i = x, turn.client
            for rows in turn.batches:
                g = (1 - alpha) * problem.gradient(y, rows) + alpha * problem.gradient(ascended(problem, y, rows, rho), rows)
                y = y - lr * clipped(g + lam * (y - x) + lam * h[i], clip)
            h[i] = h[i] + (y - x)
            locals_.append(y)
            heard.append(h[i])
        x = np.mean(locals_, 0) + np.mean(h if dual_mean == "all" else heard, 0)
        history.append(x)
    return history
