"""FedAMD: a sampled client is an anchor with probability p, v_i <- its full gradient at x, else a miner: from q = mean of ALL v_i
before this round's anchors, q <- q - gradient(y_(k-1); b) + gradient(y_k; b), y <- y - eta q; x <- x - server_lr mean over the
MINERS of Delta, divided by K where asked. At the start v_i is client i's gradient at x^0.
"""
from __future__ import annotations

import itertools

import numpy as np
from oracles._common import first_gradients


def phase(**options) -> int:
    """Which exchange of a round trains: the first gradients are asked for in one before it."""
    return 1


def mined(problem, x, mean, turn, lr, per_step):
    """The change of a miner."""
    last, y, q = x, x, mean
    for rows in turn.batches:
        q = q - problem.gradient(last, rows) + problem.gradient(y, rows)
        last, y = y, y - lr * q
    return (x - y) / (len(turn.batches) if per_step else 1)


def served(x, deltas, roles, server_lr):
    """x after the miners' mean, as it was if there is none."""
    miners = [delta for delta, anchor in zip(deltas, roles) if not anchor]
    return x - server_lr * np.mean(miners, 0) if miners else x


def run(problem, turns, *, lr, p=0.2, server_lr=1.0, per_step=False, observed=None, coins=None):
    """coins: a list to which is added, round by round, who of the cohort is an anchor."""
    x, v, history = problem.start, first_gradients(problem), []
    for t, cohort in enumerate(turns):
        deltas = [mined(problem, x, np.mean(v, 0), turn, lr, per_step) for turn in cohort]
        if p in (0, "sequential"):
            roles = (p == "sequential" and t % 2 == 0,) * len(cohort)
        else:  # the coins are read off the engine: its move must be that of one way in which they can fall
            ways = itertools.product([False, True], repeat=len(cohort))
            gaps = {way: np.abs(served(x, deltas, way, server_lr) - observed[t]).max() for way in ways}
            roles = min(gaps, key=gaps.get)
        after = served(x, deltas, roles, server_lr)
        for turn, anchor in zip(cohort, roles):
            if anchor:
                v[turn.client] = problem.gradient(x, problem.rows(turn.client))
        if coins is not None:
            coins.append(roles)
        x = after
        history.append(x)
    return history
