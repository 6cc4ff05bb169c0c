"""FedRep: h_i by SGD under phi as received, then phi_i by SGD under the new h_i; phi <- sum_i p_i phi_i over the cohort.

A client is evaluated with the new phi and a copy of h_i that it tuned to it.
"""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of, sgd, shares
from oracles._split import marked


def run(problem, turns, *, lr, head_epochs=10, tune_epochs=1, personal="head", weighting="examples", client_optimizer="sgd",
        evaluation=None, own=None):
    private, rho = marked(problem, personal), momentum_of(client_optimizer)

    def fitted(y, turn, epochs):
        return sgd(problem, y, turn.again("head", epochs=epochs, local_steps=0), lr, private, rho) if epochs else y

    x, history, heads = problem.start, [], [problem.start] * problem.clients
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y = fitted(np.where(private, heads[turn.client], x), turn, head_epochs)
            heads[turn.client] = y
            y = sgd(problem, y, turn.batches, lr, ~private, rho)
            change += p * np.where(private, 0, y - x)
        x = x + change
        own.append([fitted(y, turn, tune_epochs) for y, turn in zip(np.where(private, heads, x), evaluation)])
        history.append(x)
    return history
