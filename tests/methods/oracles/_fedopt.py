"""Adaptive federated optimization: u = sum_i p_i (y_i - x); m <- beta1 m + (1 - beta1) u; v by the rule;
x <- x + server_lr m / (sqrt(v) + tau).
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, shares


def run(rule, problem, turns, *, lr, server_lr, beta1, tau, weighting):
    """rule: (v, u) -> v. v_0 = tau^2, m_0 = 0, no bias correction."""
    x, m, history = problem.start, np.zeros_like(problem.start), []
    v = np.full_like(x, tau**2)
    for cohort in turns:
        u = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            u += p * (sgd(problem, x, turn.batches, lr) - x)
        m = beta1 * m + (1 - beta1) * u
        v = rule(v, u)
        x = x + server_lr * m / (np.sqrt(v) + tau)
        history.append(x)
    return history
