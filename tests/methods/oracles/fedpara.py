"""FedPara: FedAvg of the factors."""
from __future__ import annotations

from oracles._common import shares
from oracles._factors import first, flat, trained


def run(problem, turns, *, lr, share=0.1, form="hadamard", start="he", ordinary="head", weighting="examples", root=None):
    x, history = first(problem, root, share, form, start), []
    for cohort in turns:
        ends = [trained(problem, x, turn.batches, lr, form) for turn in cohort]
        p = shares(problem, cohort, weighting)
        x = {k: sum(a * y[k] for a, y in zip(p, ends)) for k in x} if cohort else x
        history.append(flat(x))
    return history
