"""FedAsync: w <- (1 - a_s) w + a_s y_i, or w <- w + a_s (y_i - w^{v_i}); several uploads of one update move w by the mean of their steps."""
from __future__ import annotations

import numpy as np
from oracles._late import sent, worth


def run(problem, turns, *, lr, alpha=0.6, staleness="polynomial", a=0.5, b=4.0, rho=0.005, variant="mixing"):
    models = [problem.start]
    for cohort in turns:
        w, steps = models[-1], []
        for turn in cohort:
            x = y = sent(models, turn)
            for rows in turn.batches:
                y = y - lr * (problem.gradient(y, rows) + rho * (y - x))
            a_s = alpha * worth(staleness, turn.staleness, a, b)
            steps.append((1 - a_s) * w + a_s * y - w if variant == "mixing" else a_s * (y - x))
        models.append(w + np.mean(steps, 0) if steps else w)
    return models[1:]
