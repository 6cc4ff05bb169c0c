"""Consensus ADMM: y_k = argmin f_k(y) + z_k . (y - w) + (rho / 2) |y - w|^2, exactly or by gradient steps from w;
z_k <- z_k + rho (y_k - w); w = mean of the y_k + z_k / rho that each of ALL clients stored last, or of the sampled ones alone.
"""
from __future__ import annotations

import numpy as np
from oracles._common import table


def minimizer(problem, scale, z, w, rho, i):
    """Where scale * gradient(y) + z + rho (y - w) = 0: the gradient is affine in y, so that its columns can be asked for."""
    rows, zero = problem.rows(i), np.zeros_like(w)
    curvature = np.array([problem.curvature(zero, rows, e) for e in np.eye(len(w))]).T
    return np.linalg.solve(scale * curvature + rho * np.eye(len(w)), rho * w - z - scale * problem.gradient(zero, rows))


def run(problem, turns, *, lr, rho=1.0, solve="steps", average="all", weighting="uniform"):
    w, z, history = problem.start, table(problem), []
    y = [w] * problem.clients
    share = problem.size / problem.size.sum() if weighting == "examples" else np.full(problem.clients, 1 / problem.clients)
    for cohort in turns:
        for turn in cohort:
            i, scale = turn.client, problem.clients * share[turn.client]  # the objective is sum_k p_k f_k
            if solve == "exact":
                y[i] = minimizer(problem, scale, z[i], w, rho, i)
            else:
                y[i] = w
                for rows in turn.batches:
                    y[i] = y[i] - lr * (scale * problem.gradient(y[i], rows) + z[i] + rho * (y[i] - w))
            z[i] = z[i] + rho * (y[i] - w)
        heard = range(problem.clients) if average == "all" else [turn.client for turn in cohort]
        w = np.mean([y[i] + z[i] / rho for i in heard], 0) if len(heard) else w
        history.append(w)
    return history
