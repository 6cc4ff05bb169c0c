"""Mime: c = sum_i p_i gradient_i(x) on all examples; y <- y - lr U(v; s) with the statistics s FROZEN;
x <- x - server_lr sum p Delta; then s <- V(c, s).

Momentum: U = (1 - beta) v + beta m, m <- (1 - beta) c + beta m. Adam: that over sqrt(n) + eps, n <- (1 - beta2) c^2 + beta2 n.
Adagrad: U = v / (sqrt(n) + eps), n <- n + c^2.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def mimic(problem, turns, reduced, lr, base, beta, beta2, eps, server_lr, weighting):
    """Mime where the local gradients are variance-reduced, v = gradient(y; b) - gradient(x; b) + c; else MimeLite."""
    x, history = problem.start, []
    m, n = np.zeros_like(x), np.zeros_like(x)

    def used(v):
        forward = (1 - beta) * v + beta * m if base in ("momentum", "adam") else v
        return forward / (np.sqrt(n) + eps) if base in ("adam", "adagrad") else forward

    for cohort in turns:
        if not cohort:
            history.append(x)
            continue
        p = shares(problem, cohort, weighting)
        c = p @ np.array([problem.gradient(x, problem.rows(turn.client)) for turn in cohort])
        locals_ = []
        for turn in cohort:
            y = x
            for rows in turn.batches:
                v = problem.gradient(y, rows)
                y = y - lr * used(v - problem.gradient(x, rows) + c if reduced else v)
            locals_.append(y)
        x = x - server_lr * (x - p @ np.array(locals_))
        m = (1 - beta) * c + beta * m
        n = n + c**2 if base == "adagrad" else (1 - beta2) * c**2 + beta2 * n
        history.append(x)
    return history
