"""pFedMe: per batch, `inner` times theta <- theta - personal_lr [gradient(theta) + lam (theta - w) + mu theta], then
w <- w - lr lam (w - theta), both from x; x <- (1 - beta) x + beta sum_i p_i w_i. theta_i is the client's own model.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, lam=15.0, personal_lr=0.05, inner=5, beta=1.0, mu=0.001, weighting="examples", own=None):
    x, history, thetas = problem.start, [], [problem.start] * problem.clients
    for cohort in turns:
        mean = np.zeros_like(x) if cohort else x
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            w = theta = x
            for rows in turn.batches:
                for _ in range(inner):
                    theta = theta - personal_lr * (problem.gradient(theta, rows) + lam * (theta - w) + mu * theta)
                w = w - lr * lam * (w - theta)
            thetas[turn.client] = theta
            mean = mean + p * w
        x = (1 - beta) * x + beta * mean
        own.append(np.array(thetas))
        history.append(x)
    return history
