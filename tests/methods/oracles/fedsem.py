"""FedSem: FedAvg over the labeled rows for `warmup` rounds, over and over for as many steps as over all; then over all rows, the labeled
ones first in the client's order, where the others have the label that the received model gives them.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares
from oracles._semi import rows_of
from oracles._tanh import cross_entropy, logits


def run(problem, turns, *, lr, warmup=10, weighting="examples"):
    x, history = problem.start, []
    for t, cohort in enumerate(turns):
        ends = []
        for turn in cohort:
            labeled, others = rows_of(problem, turn.client)
            rows, y = labeled if t < warmup else np.concatenate([labeled, others]), x
            for batch in turn.again(rows=rows, count=len(turn.batches)):
                inputs, labels = problem.examples(batch)
                given = np.where(np.isin(batch, labeled), labels, logits(problem, x, inputs).argmax(1)) if len(batch) else labels
                y = y - lr * cross_entropy(problem, y, inputs, given) if len(batch) else y
            ends.append(y)
        x = shares(problem, cohort, weighting) @ np.stack(ends)
        history.append(x)
    return history
