"""Network lasso by ADMM: x_i, then z of every edge, then u of every edge; f_i is the sum of node i's losses and l2 / 2 |x|^2."""
from __future__ import annotations

import numpy as np

NEIGHBORS = {"ring": lambda i, n: {(i - 1) % n, (i + 1) % n}, "full": lambda i, n: set(range(n)) - {i}}


def run(problem, turns, *, lr, lam=1.0, rho=1.0, l2=1e-3, graph="ring", places=None, seed=0, newton_steps=8, own=None):
    n, d = problem.clients, problem.start.size
    x, history = np.tile(problem.start, (n, 1)), []
    pairs = [(j, k) for j in range(n) for k in sorted(NEIGHBORS[graph](j, n))]
    at = np.zeros((n, 1)) if places is None else np.loadtxt(places, delimiter=",")
    a = {(j, k): np.exp(-np.sqrt(((at[j] - at[k]) ** 2).sum())) for j, k in pairs}
    z, u = ({pair: value.copy() for pair in pairs} for value in (problem.start, np.zeros(d)))
    for _ in turns:
        x = np.array([minimum(problem, i, [z[j, k] - u[j, k] for j, k in pairs if j == i], rho, l2) for i in range(n)])
        for j, k in pairs:
            if j < k:
                p, q = x[j] + u[j, k], x[k] + u[k, j]
                far = np.linalg.norm(p - q)
                th = max(1 - lam * a[j, k] / (rho * far), 0.5) if far > 0 else 0.5
                z[j, k], z[k, j] = th * p + (1 - th) * q, (1 - th) * p + th * q
        for j, k in pairs:
            u[j, k] = u[j, k] + x[j] - z[j, k]
        history.append(x.mean(0))
        if own is not None:
            own.append(x.copy())
    return history


def minimum(problem, i, targets, rho, l2):
    """Of a quadratic: one Newton step from anywhere, with the Hessian column by column."""
    rows, d, at = problem.rows(i), problem.start.size, problem.start
    hessian = np.array([problem.curvature(at, rows, e) for e in np.eye(d)]) * len(rows) + (l2 + rho * len(targets)) * np.eye(d)
    slope = len(rows) * problem.gradient(at, rows) + l2 * at + rho * sum(at - t for t in targets)
    return at - np.linalg.solve(hessian, slope)
