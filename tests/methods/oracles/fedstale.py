"""FedStale: u = sum_A (p_i / q_i) Delta_i + beta [sum_N p_i h_i - sum_A (p_i / q_i) h_i]; x <- x - server_lr u; h_i <- Delta_i.

p_i = n_i / n over ALL clients. Where q_i is unknown, 1 / q_i is the running mean of the client's intervals between
participations. A round of nobody still moves x by the formula, or is skipped.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, table


class Intervals:
    """One client's estimate of 1 / q from finished intervals: 1 before the first."""

    def __init__(self, cutoff):
        self.mean, self.count, self.length, self.cutoff = 1.0, 0, 0, cutoff

    def observe(self, present: bool) -> None:
        self.length += 1
        if present or (self.cutoff and self.length == self.cutoff):
            self.mean = (self.count * self.mean + self.length) / (self.count + 1)
            self.count, self.length = self.count + 1, 0


def run(problem, turns, *, lr, beta=0.5, server_lr=1.0, cutoff=0, q=None, empty="move", weighting="examples"):
    x, h, history = problem.start, table(problem), []
    raw = problem.size.astype(float) if weighting == "examples" else np.ones(problem.clients)
    p, clocks = raw / raw.sum(), [Intervals(cutoff) for _ in range(problem.clients)]
    for cohort in turns:
        delta = {turn.client: x - sgd(problem, x, turn.batches, lr) for turn in cohort}
        inverse = [clock.mean for clock in clocks] if q is None else [1 / q[i % len(q)] for i in range(problem.clients)]
        u = beta * sum(p[i] * h[i] for i in range(problem.clients))
        u = u + sum(p[i] * inverse[i] * (delta[i] - beta * h[i]) for i in delta)
        if cohort or empty == "move":
            x = x - server_lr * u
        for i, value in delta.items():
            h[i] = value
        for i, clock in enumerate(clocks):
            clock.observe(i in delta)  # this round counts from the next one on
        history.append(x)
    return history
