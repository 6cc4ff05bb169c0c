"""DFedSAM: v <- momentum v + g(y + rho g / |g|), y <- y - lr v; x_i <- sum_l W_il y_l, Q times with the same W in MGS."""
from __future__ import annotations

import numpy as np
from oracles._common import activated, ascended


def run(problem, turns, *, lr, matrices, rho=0.01, momentum=0.9):
    return rounds(problem, turns, lr, matrices, rho, momentum, 1)


def rounds(problem, turns, lr, matrices, rho, momentum, mixings):
    x, history = np.tile(problem.start, (problem.clients, 1)), []
    for cohort, w in zip(turns, matrices, strict=True):
        z = x.copy()
        for turn in cohort:
            y, v = x[turn.client], 0
            for rows in turn.batches:
                v = momentum * v + problem.gradient(ascended(problem, y, rows, rho), rows)
                y = y - lr * v
            z[turn.client] = y
        x = np.linalg.matrix_power(activated(w, cohort), mixings) @ z
        history.append(x.ravel())
    return history
