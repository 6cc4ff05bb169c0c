"""FedNova: x <- x - server_lr eta tau_eff sum_i p_i G_i, G_i = Delta_i / (eta |a_i|_1), tau_eff = sum_i p_i |a_i|_1 or p_i K_i.

|a|_1: K for SGD; [K - rho (1 - rho^K) / (1 - rho)] / (1 - rho) with momentum; sum_j (1 - eta mu)^(K-1-j) with the proximal term.
"""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of, shares


def accumulated(steps: int, lr: float, rho: float, mu: float) -> float:
    if rho:
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    return sum((1 - lr * mu) ** (steps - 1 - j) for j in range(steps))


def run(problem, turns, *, lr, mu=0.0, server_lr=1.0, tau="norm", weighting="examples", client_optimizer="sgd"):
    x, history, rho = problem.start, [], momentum_of(client_optimizer)
    for cohort in turns:
        effective, direction = 0.0, np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, m, steps = x, np.zeros_like(x), len(turn.batches)
            for rows in turn.batches:
                m = rho * m + problem.gradient(y, rows) + mu * (y - x)
                y = y - lr * m
            norm = accumulated(steps, lr, rho, mu)
            direction += p * (x - y) / (lr * norm)
            effective += p * (norm if tau == "norm" else steps)
        x = x - server_lr * lr * effective * direction
        history.append(x)
    return history
