"""FedGamma: SCAFFOLD, option II, with the gradient at the ascended point: v = gradient(y+) - c_i + c."""
from __future__ import annotations

import numpy as np
from oracles._common import ascended, table


def run(problem, turns, *, lr, rho=0.01, server_lr=1.0):
    x, c, history = problem.start, np.zeros_like(problem.start), []
    variates = table(problem)
    for cohort in turns:
        delta, drift = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            y, c_i = x, variates[turn.client]
            for rows in turn.batches:
                y = y - lr * (problem.gradient(ascended(problem, y, rows, rho), rows) - c_i + c)
            new = c_i - c + (x - y) / (len(turn.batches) * lr)
            delta += (x - y) / len(cohort)
            drift += (new - c_i) / problem.clients
            variates[turn.client] = new
        x, c = x - server_lr * delta, c + drift
        history.append(x)
    return history
