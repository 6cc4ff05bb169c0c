"""FedCompass: w <- w - (1 / N) sum_j alpha st(n - v_j) D_j, D_j = w^{v_j} - y_j."""
from __future__ import annotations

from oracles._common import momentum_of, sgd
from oracles._late import sent, worth


def run(problem, turns, *, lr, alpha=0.9, staleness="polynomial", a=0.5, b=4.0, client_optimizer="adam"):
    models = [problem.start]
    for cohort in turns:
        w = models[-1]
        for turn in cohort:
            x = sent(models, turn)
            d = x - sgd(problem, x, turn.batches, lr, rho=momentum_of(client_optimizer))
            w = w - alpha * worth(staleness, turn.staleness, a, b) / problem.clients * d
        models.append(w)
    return models[1:]
