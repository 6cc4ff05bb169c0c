"""FLTrust: the server trains on the public examples like a client; changes are scaled to its own change's length and averaged by the
positive part of their cosine with it.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd
from oracles._tanh import cross_entropy


def run(problem, turns, *, lr, server_lr=1.0):
    w, history = problem.start, []
    x, y = problem.public
    for cohort in turns:
        root = w
        for _ in cohort[0].batches:  # all take as many steps, of full batches
            root = root - lr * cross_entropy(problem, root, x, y)
        own, length = root - w, np.linalg.norm(root - w)
        moved, total = np.zeros_like(w), 0.0
        for turn in cohort:
            change = sgd(problem, w, turn.batches, lr) - w
            trust = max(change @ own / np.linalg.norm(change) / length, 0)
            moved += trust * change * length / np.linalg.norm(change)
            total += trust
        w = w + server_lr * moved / total if total else w
        history.append(w)
    return history
