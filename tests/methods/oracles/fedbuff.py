"""FedBuff: B = sum_i D_i / sqrt(1 + s_i), m <- beta m + B / Z, w <- w - eta m."""
from __future__ import annotations

import numpy as np
from oracles._common import sgd
from oracles._late import sent, worth


def run(problem, turns, *, lr, server_lr=0.1, beta=0.9, staleness="polynomial", a=0.5, b=4.0):
    models, m = [problem.start], np.zeros_like(problem.start)
    for cohort in turns:
        buffer = np.zeros_like(m)
        for turn in cohort:
            x = sent(models, turn)
            buffer += (x - sgd(problem, x, turn.batches, lr)) * worth(staleness, turn.staleness, a, b)
        m = beta * m + buffer / max(len(cohort), 1)
        models.append(models[-1] - server_lr * m)
    return models[1:]
