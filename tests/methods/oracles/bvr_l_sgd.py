"""BVR-L-SGD: every `stage` rounds g is the full gradient of ALL clients; the drawn client descends from q = g along
q <- q - gradient(y_(k-1); b) + gradient(y_k; b).

Within a stage all clients bring g along by their batches: g <- g + mean over clients of gradient(x; b) - gradient(x before; b).
Of several drawn clients the mean of the models is taken.
"""
from __future__ import annotations

import numpy as np


def phase(**options) -> int:
    """Which exchange of a round trains: the first brings full gradients, the second their differences by batches."""
    return 2


def run(problem, turns, *, lr, stage=10, everyone=None):
    x = before = problem.start
    history = []
    for t, cohort in enumerate(turns):
        if t % stage == 0:
            g = np.mean([problem.gradient(x, problem.rows(i)) for i in range(problem.clients)], 0)
        else:
            g = g + np.mean([refresh(problem, x, before, turn) for turn in everyone(1)[t]], 0)
        before, x = x, np.mean([descended(problem, x, g, turn, lr) for turn in cohort], 0) if cohort else x
        history.append(x)
    return history


def refresh(problem, x, before, turn):
    return np.mean([problem.gradient(x, rows) - problem.gradient(before, rows) for rows in turn.batches], 0)


def descended(problem, x, g, turn, lr):
    last, y, q = x, x, g
    for rows in turn.batches:
        q = q - problem.gradient(last, rows) + problem.gradient(y, rows)
        last, y = y, y - lr * q
    return y
