"""D-PSGD: x_i <- sum_j W_ij x_j - lr g_i(x_i); whoever is not active keeps its model, and what it would have had of others stays with them."""
from __future__ import annotations

import numpy as np
from oracles._common import activated, sgd


def run(problem, turns, *, lr, matrices):
    x, history = np.tile(problem.start, (problem.clients, 1)), []
    for cohort, w in zip(turns, matrices, strict=True):
        step = np.zeros_like(x)
        for turn in cohort:
            step[turn.client] = sgd(problem, x[turn.client], turn.batches, lr) - x[turn.client]
        x = activated(w, cohort) @ x + step
        history.append(x.ravel())
    return history
