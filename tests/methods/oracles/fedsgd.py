"""FedSGD: E = 1 and B = all of a client's examples, so one round is one step along the weighted mean of the full gradients."""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, server_lr=1.0, weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        gradient = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            gradient += p * problem.gradient(x, problem.rows(turn.client))
        x = x - server_lr * lr * gradient
        history.append(x)
    return history
