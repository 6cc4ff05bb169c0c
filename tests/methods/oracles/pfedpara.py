"""pFedPara: W = W1 * (W2 + 1); x2 and y2 stay with their client, those of the start until it takes part."""
from __future__ import annotations

from oracles._common import shares
from oracles._factors import first, flat, trained


def run(problem, turns, *, lr, share=0.5, start="he", ordinary="head", weighting="examples", own=None, root=None):
    x, history = first(problem, root, share, "shifted", start), []
    private = [{k: x[k] for k in ("x2", "y2")} for _ in range(problem.clients)]
    for cohort in turns:
        ends = [trained(problem, {**x, **private[turn.client]}, turn.batches, lr, "shifted") for turn in cohort]
        p = shares(problem, cohort, weighting)
        for turn, y in zip(cohort, ends):
            private[turn.client] = {k: y[k] for k in ("x2", "y2")}
        x = {**x, **{k: sum(a * y[k] for a, y in zip(p, ends)) for k in x if k not in ("x2", "y2") and cohort}}
        history.append(flat(x))
        own.append([flat({**x, **mine}) for mine in private])
    return history
