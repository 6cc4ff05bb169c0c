"""FedSMOO, each step: s = rho (g - mu_i - s_bar) / |.|, mu_i <- mu_i + s - s_bar, v = gradient(y + s) + lam (y - x) + lam h_i.

Server: s_bar = rho mean_S mu_i / |mean_S mu_i|; h and x as in FedDyn. mu_i and h_i stay with the client.
"""
from __future__ import annotations

import numpy as np
from oracles._common import clipped, table


def run(problem, turns, *, lr, rho=0.1, lam=0.1, clip=np.inf):
    x, shared, history = problem.start, np.zeros_like(problem.start), []
    h, mu = table(problem), table(problem)
    for cohort in turns:
        locals_ = []
        for turn in cohort:
            y, i = x, turn.client
            for rows in turn.batches:
                s = problem.gradient(y, rows) - mu[i] - shared
                s = rho * s / (np.linalg.norm(s) + 1e-7)
                mu[i] = mu[i] + s - shared
                y = y - lr * clipped(problem.gradient(y + s, rows) + lam * (y - x) + lam * h[i], clip)
            h[i] = h[i] + (y - x)
            locals_.append(y)
        mean = np.mean([mu[turn.client] for turn in cohort], 0)
        shared = rho * mean / (np.linalg.norm(mean) + 1e-7)
        x = np.mean(locals_, 0) + np.mean(h, 0)
        history.append(x)
    return history
