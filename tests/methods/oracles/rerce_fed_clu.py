"""RERCE-Fed-CLU: the cohort stores w~_k = w_n; EVERY client w' = (I - rho B_k) w_k + rho B_k w~_k, s_k = 2 w' - w_k, w_k <- w';
the cohort's s_k replace what the server has of them, and w_(n+1) = mean over ALL.

In the first round w_k = w^_k, the server hears 2 w^_k of everybody, and what has been received is w_0 = 0.
"""
from __future__ import annotations

import numpy as np
from oracles._common import table
from oracles._rerce import Regression


def run(problem, turns, *, lr, rho=1.0, weight=1e4):
    clients = [Regression(problem, i, rho, weight) for i in range(problem.clients)]
    own, received = [client.start for client in clients], table(problem)
    cached = [2 * w for w in own]
    history = [np.mean(cached, 0)]
    for cohort in turns[1:]:
        for turn in cohort:
            received[turn.client] = history[-1]
        new = [client.step(w_k, s) for client, w_k, s in zip(clients, own, received)]
        for i in (turn.client for turn in cohort):
            cached[i] = 2 * new[i] - own[i]
        own = new
        history.append(np.mean(cached, 0))
    return history
