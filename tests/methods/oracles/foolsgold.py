"""FoolsGold: H_i += delta_i; similarities of the H_i of those who took part, pardoned, become weights; x <- x + lr sum_i a_i delta_i / sum_i a_i,
or divided by their number.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, table


def trust(h):
    n = len(h)
    norms = np.array([np.linalg.norm(v) for v in h])
    s = np.array([[h[i] @ h[j] / max(norms[i] * norms[j], 1e-12) if i != j else 0.0 for j in range(n)] for i in range(n)])
    v = s.max(1)
    for i in range(n):
        for j in range(n):
            if i != j and v[i] < v[j]:
                s[i, j] *= v[i] / v[j]
    a = np.clip(1 - s.max(1), 0, 1)
    a = a / a.max() if a.max() > 0 else a
    a = np.where(a == 1, 0.99, a)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(a / (1 - a)) + 0.5, 0, 1)


def run(problem, turns, *, lr, server_lr=1.0, divide="trust"):
    x, h, history = problem.start, table(problem), []
    for cohort in turns:
        delta = [sgd(problem, x, turn.batches, lr) - x for turn in cohort]
        for turn, d in zip(cohort, delta, strict=True):
            h[turn.client] = h[turn.client] + d
        if cohort:
            a = trust([h[turn.client] for turn in cohort])
            total = a.sum() if divide == "trust" else len(a)
            x = x + server_lr * (a @ np.array(delta) / total if a.any() else 0)
        history.append(x)
    return history
