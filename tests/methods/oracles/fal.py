"""FAL: every step is taken on inputs that projected gradient ascent has changed by rho at most; x <- x + server_lr mean_c (u_c - x).

x~ <- Proj(x~ + a sign(g)), or a g / |g| in the l2 ball; the ball around x, then the box; a = 2.5 rho / steps where it is not given.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares
from oracles._tanh import cross_entropy, logits, softmax


def ascent(problem, v, x, y):
    """[B, n]: the gradient of every example's own loss in its input."""
    p = problem.tensors(v)
    slope = softmax(logits(problem, v, x))
    slope[np.arange(len(y)), y] -= 1
    return (slope @ p["w2"].T * (1 - np.tanh(x @ p["w1"] + p["b1"]) ** 2)) @ p["w1"].T


def attacked(problem, v, x, y, rho, norm, steps, a, low, high):
    found = x
    for _ in range(steps):
        g = ascent(problem, v, found, y)
        found = found + a * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g, axis=1, keepdims=True))
        away = found - x
        away = np.clip(away, -rho, rho) if norm == "linf" else away * np.minimum(1, rho / np.linalg.norm(away, axis=1, keepdims=True))
        found = np.clip(x + away, low, high)
    return found


def run(problem, turns, *, lr, rho=8 / 255, norm="linf", steps=7, step=0.0, random=True, low=0.0, high=1.0, weighting="uniform", server_lr=1.0):
    assert not random or not steps, "an oracle draws nothing"
    x, history = problem.start, []
    for cohort in turns:
        ends = []
        for turn in cohort:
            u = x
            for rows in turn.batches:
                inputs, labels = problem.examples(rows)
                near = attacked(problem, u, inputs, labels, rho, norm, steps, step or 2.5 * rho / max(steps, 1), low, high)
                u = u - lr * cross_entropy(problem, u, near, labels)
            ends.append(u)
        x = x + server_lr * sum(p * (u - x) for p, u in zip(shares(problem, cohort, weighting), ends, strict=True))
        history.append(x)
    return history
