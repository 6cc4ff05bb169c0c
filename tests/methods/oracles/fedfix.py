"""FedFix: w^{n+1} = w^n + eta_g sum_{S_n} d_i (y_i - w^{v_i}), d_i = p_i f_i or 1 / |S_n|."""
from __future__ import annotations

from oracles._common import sgd
from oracles._late import sent


def run(problem, turns, *, lr, server_lr=1.0, weights="weight"):
    models = [problem.start]
    for cohort in turns:
        w = models[-1]
        for turn in cohort:
            x = sent(models, turn)
            d = problem.size[turn.client] / problem.size.sum() * turn.factor if weights == "weight" else 1 / len(cohort)
            w = w + server_lr * d * (sgd(problem, x, turn.batches, lr) - x)
        models.append(w)
    return models[1:]
