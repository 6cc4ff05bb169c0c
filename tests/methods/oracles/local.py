"""Local-only: theta_i <- theta_i - lr gradient over the client's batches, from x^0, in every round or when drawn; nothing is sent."""
from __future__ import annotations

import numpy as np
from oracles._common import sgd


def run(problem, turns, *, lr, who="all", everyone=None, own=None):
    theta, history = [problem.start] * problem.clients, []
    for t, cohort in enumerate(turns):
        for turn in everyone(0)[t] if who == "all" else cohort:
            theta[turn.client] = sgd(problem, theta[turn.client], turn.batches, lr)
        own.append(np.array(theta))
        history.append(problem.start)
    return history
