"""Delta-SGD, fresh in every round (lr has no part); G, G' are gradients of ONE batch at y_k, y_{k-1}:
eta_k = min{gamma |y_k - y_{k-1}| / (2 |G - G'|), sqrt(1 + delta theta_{k-1}) eta_{k-1}}, the second where a norm is zero;
theta_k = eta_k / eta_{k-1}; y <- y - eta_k G.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, gamma=2.0, delta=0.1, eta0=0.2, theta0=1.0, weighting="uniform"):
    x, history = problem.start, []
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, before, eta, theta = x, x, eta0, theta0
            for rows in turn.batches:
                g = problem.gradient(y, rows)
                moved, bent = np.linalg.norm(y - before), np.linalg.norm(g - problem.gradient(before, rows))
                new = np.sqrt(1 + delta * theta) * eta
                if moved > 0 and bent > 0:
                    new = min(gamma * moved / (2 * bent), new)
                eta, theta = new, new / eta
                y, before = y - eta * g, y
            change += p * (y - x)
        x = x + change
        history.append(x)
    return history
