"""FedPer: SGD on all of (phi, h_i); phi <- sum_i p_i phi_i over the cohort, h_i stays with its client, x^0's until it takes part."""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of, sgd, shares
from oracles._split import marked


def run(problem, turns, *, lr, personal="head", weighting="examples", client_optimizer="sgd", own=None):
    private, rho = marked(problem, personal), momentum_of(client_optimizer)
    x, history, heads = problem.start, [], [problem.start] * problem.clients
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = sgd(problem, np.where(private, heads[turn.client], x), turn.batches, lr, rho=rho)
            heads[turn.client] = y
            change += p * np.where(private, 0, y - x)
        x = x + change
        own.append(np.where(private, heads, x))
        history.append(x)
    return history
