"""PowerSGD: M_i = (y_i - x) + e_i, transposed to [out, in]; P = Gram-Schmidt of mean M_i Q, Q = mean M_i^T P, x <- x + P Q^T;
e_i = M_i - P (M_i^T P)^T, or M_i - P Q^T. Matrices whose factors are not `ratio` times smaller, and vectors, are averaged whole.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import sgd, shares


def orthonormal(P):
    columns = []
    for c in P.T:
        for q in columns:
            c = c - (q @ c) * q
        columns.append(c / np.linalg.norm(c))
    return np.array(columns).T


def run(problem, turns, *, lr, rank=2, ratio=2.0, memory="own", weighting="examples", root=None):
    x, history = problem.start, []
    shapes = {k: a.shape for k, a in problem.tensors(x).items()}
    thin = [k for k, s in shapes.items() if len(s) == 2 and s[0] * s[1] >= ratio * rank * (s[0] + s[1])]
    Q = {k: plan.drawn("normal", root, ("server", k), (shapes[k][0], rank)) for k in thin}
    errors = [{k: np.zeros(shapes[k][::-1]) for k in thin} for _ in range(problem.clients)]
    for cohort in turns:
        p = shares(problem, cohort, weighting)
        changes = [problem.tensors(sgd(problem, x, turn.batches, lr) - x) for turn in cohort]
        mean = {k: sum(a * c[k] for a, c in zip(p, changes)) for k in shapes} if cohort else {}
        for k in thin if cohort else ():
            M = [c[k].T + errors[turn.client][k] for c, turn in zip(changes, cohort)]
            P = orthonormal(sum(a * m @ Q[k] for a, m in zip(p, M)))
            Q[k] = sum(a * m.T @ P for a, m in zip(p, M))
            mean[k] = (P @ Q[k].T).T
            for turn, m in zip(cohort, M):
                left = {"own": m - P @ P.T @ m, "mean": m - P @ Q[k].T, "none": 0 * m}
                errors[turn.client][k] = left[memory]
        x = x + problem.flat(mean) if cohort else x
        history.append(x)
    return history
