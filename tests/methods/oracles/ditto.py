"""Ditto: v_i <- v_i - lr [gradient(v_i) + lam (v_i - x)], x as received, in passes of its own; x itself goes FedAvg's way."""
from __future__ import annotations

import numpy as np
from oracles import fedavg


def run(problem, turns, *, lr, lam=0.1, personal_epochs=0, weighting="examples", own=None):
    history = fedavg.run(problem, turns, lr=lr, weighting=weighting)
    v = [problem.start] * problem.clients
    for x, cohort in zip([problem.start, *history], turns):
        for turn in cohort:
            v_i = v[turn.client]
            for rows in turn.again("personal", **({"epochs": personal_epochs, "local_steps": 0} if personal_epochs else {})):
                v_i = v_i - lr * (problem.gradient(v_i, rows) + lam * (v_i - x))
            v[turn.client] = v_i
        own.append(np.array(v))
    return history
