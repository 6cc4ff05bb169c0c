"""FAVANO: u_i = a_i + (w_i - a_i) / alpha_i of the polled, w_t = (w_{t-1} + sum u_i) / (s + 1)."""
from __future__ import annotations

from oracles._common import sgd
from oracles._late import sent


def run(problem, turns, *, lr):
    models = [problem.start]
    for cohort in turns:
        total = models[-1]
        for turn in cohort:
            anchor = sent(models, turn)
            total = total + anchor + (sgd(problem, anchor, turn.batches, lr) - anchor) * turn.factor
        models.append(total / (len(cohort) + 1))
    return models[1:]
