"""FedLin: all clients send their full gradient at x, g = their mean; local: v = gradient(y; b) - gradient(x; b) + g with the step
eta / K_i; x = mean of y_K. Gradients may be sent as their largest entries, up or down, with error feedback.
"""
from __future__ import annotations

import math

import numpy as np
from oracles._common import table


def phase(**options) -> int:
    """Which exchange of a round trains: the first one brings the gradients."""
    return 1


def largest(v, share):
    """v with all but this share of its entries, the largest, set to zero."""
    kept = np.argsort(-np.abs(v), kind="stable")[: math.ceil(share * len(v))]
    return np.where(np.isin(np.arange(len(v)), kept), v, 0.0)


def run(problem, turns, *, lr, up_share=1.0, down_share=1.0):
    x, owed, owed_down, history = problem.start, table(problem), np.zeros_like(problem.start), []
    for cohort in turns:
        sent = []
        for i in (turn.client for turn in cohort):
            full = problem.gradient(x, problem.rows(i)) + owed[i]
            sent.append(largest(full, up_share))
            owed[i] = full - sent[-1]
        full = np.mean(sent, 0) + owed_down
        g = largest(full, down_share)
        owed_down = full - g
        locals_ = []
        for turn in cohort:
            y = x
            for rows in turn.batches:
                y = y - lr / len(turn.batches) * (problem.gradient(y, rows) - problem.gradient(x, rows) + g)
            locals_.append(y)
        x = np.mean(locals_, 0)
        history.append(x)
    return history
