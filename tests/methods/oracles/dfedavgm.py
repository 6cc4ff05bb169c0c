"""DFedAvgM: y^{k+1} = y^k - lr g(y^k) + theta (y^k - y^{k-1}) from y^{-1} = y^0 = x_i; x_i <- sum_l W_il y_l."""
from __future__ import annotations

import numpy as np
from oracles._common import activated


def run(problem, turns, *, lr, matrices, theta=0.9):
    x, history = np.tile(problem.start, (problem.clients, 1)), []
    for cohort, w in zip(turns, matrices, strict=True):
        z = x.copy()
        for turn in cohort:
            before = y = x[turn.client]
            for rows in turn.batches:
                before, y = y, y - lr * problem.gradient(y, rows) + theta * (y - before)
            z[turn.client] = y
        x = activated(w, cohort) @ z
        history.append(x.ravel())
    return history
