"""FetchSGD: S(g)[r, h_r(j)] += s_r(j) g_j; V <- momentum V + mean S(x - y_i), E <- E + server_lr V; x loses the k entries of the largest
median_r s_r(j) E[r, h_r(j)]; their cells become zero in E and V, or E <- E - S(u).
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import sgd, shares


def run(problem, turns, *, lr, share=0.01, rows=5, size=0.38, momentum=0.9, server_lr=1.0, clear="zero", seed=0, weighting="examples"):
    x, history, d = problem.start, [], len(problem.start)
    columns, k = max(1, round(size * d / rows)), max(1, round(share * d))
    h = plan.drawn("randint", plan.key_of(seed), ("column",), (rows, d), 0, columns)
    s = plan.drawn("rademacher", plan.key_of(seed), ("sign",), (rows, d)).astype(float)

    def sketch(g):
        table = np.zeros((rows, columns))
        for r in range(rows):
            for j in range(d):
                table[r, h[r, j]] += s[r, j] * g[j]
        return table

    V = E = np.zeros((rows, columns))
    for cohort in turns:
        if cohort:
            p = shares(problem, cohort, weighting)
            V = momentum * V + sum(a * sketch(x - sgd(problem, x, turn.batches, lr)) for a, turn in zip(p, cohort))
            E = E + server_lr * V
            estimate = np.array([np.median([s[r, j] * E[r, h[r, j]] for r in range(rows)]) for j in range(d)])
            u = np.zeros(d)
            for j in np.argsort(-np.abs(estimate), kind="stable")[:k]:
                u[j] = estimate[j]
            if clear == "subtract":
                E = E - sketch(u)
            else:
                touched = np.zeros((rows, columns), bool)
                for j in np.argsort(-np.abs(estimate), kind="stable")[:k]:
                    touched[np.arange(rows), h[:, j]] = True
                V, E = np.where(touched, 0, V), np.where(touched, 0, E)
            x = x - u
        history.append(x)
    return history
