"""FedKSeed: y = x, G = 0; a step draws j, rho = [F(y + eps z_j) - F(y - eps z_j)] / (2 eps), y <- y - lr rho z_j, G_j += lr rho;
a <- a + sum p_i G_i, x = x^0 - sum_j a_j z_j. Pro draws j by the softmax of the importances, scaled to [0, 1]: the mean of min(|rho|, limit) over
seed j's history, 0 without one.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import shares


def run(problem, turns, *, lr, seeds=4096, eps=5e-4, pro=False, limit=1000.0, weighting="examples", root=None):
    key = plan.key_of(plan.drawn("bits", root, ("server",)))
    shapes = {k: v.shape for k, v in problem.tensors(problem.start).items()}
    z = [problem.flat({k: plan.drawn("normal", key, (j, k), s) for k, s in shapes.items()}) for j in range(seeds)]
    x, a, history, seen = problem.start, np.zeros(seeds), [], [[] for _ in range(seeds)]
    for cohort in turns:
        importance, p = np.array([np.mean(s) if s else 0.0 for s in seen]), shares(problem, cohort, weighting)
        span = importance.max() - importance.min()
        preference = (importance - importance.min()) / span if pro and span else np.zeros(seeds)
        for turn, share in zip(cohort, p):
            y = x
            for t, rows in enumerate(turn.batches):
                j = int(plan.drawn("categorical", turn.key, ("steps", t, "seed"), preference.astype(np.float32)))
                rho = (problem.loss(y + eps * z[j], rows) - problem.loss(y - eps * z[j], rows)) / (2 * eps)
                y = y - lr * rho * z[j]
                a[j] += share * lr * rho
                seen[j].append(min(abs(rho), limit))
        x = problem.start - sum(a[j] * z[j] for j in range(seeds))
        history.append(x)
    return history
