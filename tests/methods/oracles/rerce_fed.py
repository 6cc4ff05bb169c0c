"""RERCE-Fed: s = 2 w_n - w_(n-1) goes to the cohort; w_k <- (I - rho B_k) w_k + rho B_k s; w_(n+1) = mean of the cohort's w_k.

In the first round w_k = w^_k is all that the cohort sends; w_0 = 0. Everybody else starts from w^_k too.
"""
from __future__ import annotations

import numpy as np
from oracles._rerce import Regression


def run(problem, turns, *, lr, rho=1.0, weight=1e4):
    clients = [Regression(problem, i, rho, weight) for i in range(problem.clients)]
    own, history = [client.start for client in clients], []
    before = w = np.zeros_like(problem.start)
    for n, cohort in enumerate(turns):
        s = 2 * w - before
        for i in (turn.client for turn in cohort if n):
            own[i] = clients[i].step(own[i], s)
        if cohort:  # a round of nobody is none
            before, w = w, np.mean([own[turn.client] for turn in cohort], 0)
        history.append(w)
    return history
