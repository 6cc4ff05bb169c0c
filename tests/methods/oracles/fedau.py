"""FedAU: the client's weight is p_i omega_i, and the sum is not divided. p_i is over ALL clients; omega_i is the running mean of
its intervals cut at `cutoff`, from the rounds before this one.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd
from oracles.fedstale import Intervals


def run(problem, turns, *, lr, server_lr=1.0, cutoff=50, weighting="examples"):
    x, history = problem.start, []
    raw = problem.size.astype(float) if weighting == "examples" else np.ones(problem.clients)
    p, clocks = raw / raw.sum(), [Intervals(cutoff) for _ in range(problem.clients)]
    for cohort in turns:
        u = sum(p[t.client] * clocks[t.client].mean * (x - sgd(problem, x, t.batches, lr)) for t in cohort)
        x = x - server_lr * u
        present = {turn.client for turn in cohort}
        for i, clock in enumerate(clocks):
            clock.observe(i in present)
        history.append(x)
    return history
