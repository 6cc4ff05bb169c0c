"""FedPAGE: with probability p all clients' full gradient is the direction g; otherwise g is the mean direction of the cohort's
local SARAH steps, which start from the last g corrected by the gradients at (x^(t-1), x^t) on a large batch.
x <- x - server_lr g.

The first round is one of full gradients. The large batch is all of a client's examples. Without a server_lr the server goes as
far as lr steps of the round's mean number would. A round in which nobody is heard is none.
"""
from __future__ import annotations

import numpy as np
from oracles._common import mean_steps


def phase(**options) -> int:
    """Which exchange of a round trains: the other one brings everybody's gradient."""
    return 1


def run(problem, turns, *, lr, p=0.5, server_lr=None, everyone=None, observed=None, coins=None):
    """coins: a list to which is added, round by round, whether the gradients were full."""
    x = before = problem.start
    g, history = None, []
    for t, cohort in enumerate(turns):
        moves = {}
        if t == 0 or p > 0:
            full = np.mean([problem.gradient(x, problem.rows(i)) for i in range(problem.clients)], 0)
            moves[True] = full, server_lr or lr * mean_steps(everyone(0)[t])
        if t > 0 and p < 1:
            local = [direction(problem, x, before, g, turn, lr) for turn in cohort]
            moves[False] = (np.mean(local, 0), server_lr or lr * mean_steps(cohort)) if cohort else (g, 0.0)
        coin = next(iter(moves))
        if len(moves) > 1:  # the coin is read off the engine: its move must be one of the two
            gaps = {full: np.abs(x - rate * way - observed[t]).max() for full, (way, rate) in moves.items()}
            coin = min(gaps, key=gaps.get)
        if coins is not None:
            coins.append(coin)
        if coin or cohort:
            g, rate = moves[coin]
            before, x = x, x - rate * g
        history.append(x)
    return history


def direction(problem, x, before, g, turn, lr):
    """(x - y_K) / (lr K): the first step is along g corrected on all of the client's examples, the others follow the batches."""
    rows = problem.rows(turn.client)
    q = g + problem.gradient(x, rows) - problem.gradient(before, rows)
    last, y = x, x - lr * q
    for rows in turn.batches[1:]:
        q = q + problem.gradient(y, rows) - problem.gradient(last, rows)
        last, y = y, y - lr * q
    return (x - y) / (lr * len(turn.batches))
