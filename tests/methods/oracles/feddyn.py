"""FedDyn: v = gradient + lam (y - x) + lam h_i; h_i <- h_i + (y_K - x) for participants; x <- mean_S y_K + mean_N h_i.

Unequal examples: lam / (N p_i), p_i over ALL clients. One may evaluate mean_S y_K instead of x.
"""
from __future__ import annotations

import numpy as np
from oracles._common import clipped, table


def run(problem, turns, *, lr, lam=0.1, clip=np.inf, evaluate="model", weighting="uniform"):
    x, h, history = problem.start, table(problem), []
    for cohort in turns:
        locals_ = []
        for turn in cohort:
            y, i = x, turn.client
            a = lam / (problem.clients * problem.size[i] / problem.size.sum()) if weighting == "examples" else lam
            for rows in turn.batches:
                y = y - lr * clipped(problem.gradient(y, rows) + a * (y - x) + a * h[i], clip)
            h[i] = h[i] + (y - x)
            locals_.append(y)
        x = np.mean(locals_, 0) + np.mean(h, 0)
        history.append(np.mean(locals_, 0) if evaluate == "average" else x)
    return history
