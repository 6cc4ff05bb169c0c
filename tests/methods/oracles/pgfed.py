"""PGFed: clients descend along grad f_i + A_i, A_i = mu sum_j a_ij g_j over the last cohort P, while every step takes
lam (mu c_j + <gbar, y>) off a_ij, gbar = mu mean_j g_j, or with `exact` lam mu (c_j + <g_j, y>), not below zero. Then g_i, c_i = f_i - <g_i, y>
are taken on all of the client's examples. a_ij starts at 1 / |P| when it is first used. With momentum b the old A_i counts b, the new 1 - b.
"""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of, shares


def run(problem, turns, *, lr, mu=0.1, lam=0.01, momentum=0.0, exact=False, weighting="examples", client_optimizer="momentum:0.9", own=None):
    n, x, rho, history = problem.clients, problem.start, momentum_of(client_optimizer), []
    theta, A, alpha, last = [x] * n, [np.zeros_like(x)] * n, np.full((n, n), np.nan), {}
    for cohort in turns:
        ends, told = [], {}
        for turn in cohort:
            i = turn.client
            for j in last:
                alpha[i, j] = 1 / len(last) if np.isnan(alpha[i, j]) else alpha[i, j]
            A[i] = (1 - momentum) * mu * sum((alpha[i, j] * g for j, (g, _) in last.items()), np.zeros_like(x)) + momentum * A[i]
            mean = mu * np.mean([g for g, _ in last.values()], 0) if last else 0
            y, m = x, np.zeros_like(x)
            for rows in turn.batches:
                v = problem.gradient(y, rows) + A[i]
                for j, (g, c) in last.items():
                    alpha[i, j] = max(0.0, alpha[i, j] - lam * (mu * (c + g @ y) if exact else mu * c + mean @ y))
                m = rho * m + v
                y = y - lr * m
            g = problem.gradient(y, problem.rows(i))
            told[i] = g, problem.loss(y, problem.rows(i)) - g @ y
            theta[i] = y
            ends.append(y)
        last = told or last
        x = sum(p * y for p, y in zip(shares(problem, cohort, weighting), ends)) if cohort else x
        history.append(x)
        own.append(np.array(theta))
    return history
