"""SAVIC: at each synchronisation a statistic of the averaged (global) or own (local) gradient at x updates D.

Squared gradient H^2 = g g: D^2 <- b_t D^2 + (1 - b_t) H^2, Adam b_t = (beta - beta^(t+1)) / (1 - beta^(t+1)), RMSProp b_t = beta.
Curvature H = z (Hessian z): OASIS D <- beta D + (1 - beta) H.
D_hat = max(alpha, |D|) or |D| + alpha is FROZEN between synchronisations: y <- y - eta gradient / D_hat; x = mean y.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares, table


def phase(scaling="global", **options) -> int:
    """Which exchange of a round trains: with global scaling the first one brings the statistic."""
    return int(scaling == "global")


def statistic(problem, x, rows, rule):
    """g, or z (Hessian z), which is the same for every z of signs where the Hessian is diagonal, as in the bowl."""
    return problem.curvature(x, rows, np.ones_like(x)) if rule == "oasis" else problem.gradient(x, rows)


def refreshed(scale, h, rule, beta, t):
    """D after its own update number t."""
    if rule == "oasis":
        return h if t == 0 else beta * scale + (1 - beta) * h  # the card leaves D_0 open: the first estimate, as with Adam
    b = beta if rule == "rmsprop" else (beta - beta ** (t + 1)) / (1 - beta ** (t + 1))
    return np.sqrt(b * scale**2 + (1 - b) * h**2)


def run(problem, turns, *, lr, rule="adam", scaling="global", beta=0.999, alpha=1e-2, floor="max", weighting="uniform"):
    x, history = problem.start, []
    scales, updates = table(problem), [0] * problem.clients  # with global scaling all rows are the same
    for t, cohort in enumerate(turns):
        p = shares(problem, cohort, weighting)
        own = [statistic(problem, x, problem.rows(turn.client), rule) for turn in cohort]
        if scaling == "global":
            scales = [refreshed(scales[0], p @ np.array(own), rule, beta, t)] * problem.clients
        locals_ = []
        for turn, h in zip(cohort, own):
            if scaling == "local":
                scales[turn.client] = refreshed(scales[turn.client], h, rule, beta, updates[turn.client])
                updates[turn.client] += 1  # a client's D has its own history: its first D^2 is H^2, whenever it comes
            size = np.abs(scales[turn.client])
            divisor, y = (np.maximum(alpha, size) if floor == "max" else size + alpha), x
            for rows in turn.batches:
                y = y - lr * problem.gradient(y, rows) / divisor
            locals_.append(y)
        x = p @ np.array(locals_)
        history.append(x)
    return history
