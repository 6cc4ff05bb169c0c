"""FedBN: SGD on everything in training mode; of what comes back all is averaged but the normalization's scale, shift and running
mean and variance, which stay with their client, x^0's until it takes part.

The running values follow the batch's by a tenth a step, as seen on the way forward.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares
from oracles._split import marked


def followed(problem, y, rows):
    """y with new running values."""
    tensors = problem.tensors(y)
    if "stats/BatchNorm_0/mean" in tensors:
        z = problem.examples(rows)[0] @ tensors["params/Dense_0/kernel"] + tensors["params/Dense_0/bias"]
        for name, value in (("mean", z.mean(0)), ("var", z.var(0))):
            tensors[f"stats/BatchNorm_0/{name}"] = 0.9 * tensors[f"stats/BatchNorm_0/{name}"] + 0.1 * value
    return problem.flat(tensors)


def run(problem, turns, *, lr, weighting="uniform", own=None):
    private = marked(problem, "BatchNorm")
    x, history, rows_of = problem.start, [], [problem.start] * problem.clients
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = np.where(private, rows_of[turn.client], x)
            for rows in turn.batches:
                y = followed(problem, y, rows) - lr * problem.gradient(y, rows)
            rows_of[turn.client] = y
            change += p * np.where(private, 0, y - x)
        x = x + change
        own.append(np.where(private, rows_of, x))
        history.append(x)
    return history
