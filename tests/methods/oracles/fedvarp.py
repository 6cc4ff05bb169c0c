"""FedVARP: v = mean_S (Delta_i - h_i) + mean_N h_j; x <- x - server_lr v; only then h_i <- Delta_i for i in S."""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, table


def run(problem, turns, *, lr, server_lr=1.0):
    x, h, history = problem.start, table(problem), []
    for cohort in turns:
        delta = {turn.client: x - sgd(problem, x, turn.batches, lr) for turn in cohort}
        v = np.mean([delta[i] - h[i] for i in delta], 0) + np.mean(h, 0)
        x = x - server_lr * v
        for i, value in delta.items():
            h[i] = value
        history.append(x)
    return history
