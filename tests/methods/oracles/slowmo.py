"""SlowMo: m <- beta m + (x - mean y) / eta; x <- x - alpha eta m."""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, shares


def run(problem, turns, *, lr, beta=0.7, alpha=1.0, weighting="uniform"):
    x, m, history = problem.start, np.zeros_like(problem.start), []
    for cohort in turns:
        mean = sum(p * sgd(problem, x, turn.batches, lr) for turn, p in zip(cohort, shares(problem, cohort, weighting)))
        m = beta * m + (x - mean) / lr
        x = x - alpha * lr * m
        history.append(x)
    return history
