"""FedAvg: local SGD, then x <- x - server_lr * sum_i p_i (x - y_i), with p_i = n_i over the SAMPLED clients."""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of, shares


def run(problem, turns, *, lr, server_lr=1.0, weighting="examples", client_optimizer="sgd"):
    x, history, rho = problem.start, [], momentum_of(client_optimizer)
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, m = x, np.zeros_like(x)  # the momentum is fresh in every round
            for rows in turn.batches:
                m = rho * m + problem.gradient(y, rows)
                y = y - lr * m
            change += p * (y - x)
        x = x + server_lr * change
        history.append(x)
    return history
