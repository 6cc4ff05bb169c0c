"""What both RERCE-Fed forms share: J_k = weight |y_k - X_k w|^2 of linear regression, B_k = (2 weight X_k^T X_k + rho I)^-1,
w^_k = 2 B_k weight X_k^T y_k, and one step w <- (I - rho B_k) w + rho B_k s.
"""
from __future__ import annotations

import numpy as np


class Regression:
    """One client's B_k and w^_k: the problem's gradient and curvature are means over the rows, J_k is a sum."""

    def __init__(self, problem, client, rho, weight):
        rows, zero = problem.rows(client), np.zeros_like(problem.start)
        scale = weight * len(rows)
        columns = [scale * problem.curvature(zero, rows, e) for e in np.eye(len(zero))]
        self.pull = rho * np.linalg.inv(np.array(columns).T + rho * np.eye(len(zero)))  # rho B_k
        self.start = -scale * (self.pull / rho) @ problem.gradient(zero, rows)

    def step(self, w, s):
        return w - self.pull @ w + self.pull @ s
