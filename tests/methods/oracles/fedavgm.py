"""FedAvgM: m <- beta m + sum_i p_i Delta_i, x <- x - server_lr m; Nesterov; and the EMA m <- beta m + (1 - beta) Delta."""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, shares


def run(problem, turns, *, lr, beta=0.9, server_lr=1.0, nesterov=False, form="heavy_ball", weighting="examples"):
    x, m, history = problem.start, np.zeros_like(problem.start), []
    for cohort in turns:
        delta = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            delta += p * (x - sgd(problem, x, turn.batches, lr))
        fresh = (1 - beta) * delta if form == "ema" else delta
        m = beta * m + fresh
        x = x - server_lr * (beta * m + fresh if nesterov else m)
        history.append(x)
    return history
