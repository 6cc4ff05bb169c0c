"""FedProx: v = gradient + mu (y - x), then the weighted mean."""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, mu=0.01, weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = x
            for rows in turn.batches:
                y = y - lr * (problem.gradient(y, rows) + mu * (y - x))
            change += p * (y - x)
        x = x + change
        history.append(x)
    return history
