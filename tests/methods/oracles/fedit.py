"""FedIT: clients train copies of (A, B) on a frozen base, and the server averages A and B, each by itself. Where ranks differ, a client gets
the first r_i rows of A and columns of B, and the server fills up with zeros what it sends back.

The engine's parameters are {"frozen": {"base"}, "params": {"a", "b", "whole"}}, flat in this order.
"""
from __future__ import annotations

import numpy as np
from oracles import _lora
from oracles._common import momentum_of, shares


def run(problem, turns, *, lr, ranks=(16,), scale=1.0, where=(), whole=(), start="kaiming", weighting="examples", client_optimizer="adamw",
        root=None):
    base, x = _lora.start(problem, where, whole, max(ranks), start, root)
    history, rho = [], momentum_of(client_optimizer)
    for cohort in turns:
        first = [{**x, "a": {k: v[:r] for k, v in x["a"].items()}, "b": {k: v[:, :r] for k, v in x["b"].items()}}
                 for r in (ranks[turn.client % len(ranks)] for turn in cohort)]
        ends = [filled(_lora.trained(problem, base, mine, scale, turn.batches, lr, rho=rho), max(ranks)) for turn, mine in zip(cohort, first)]
        x = _lora.mean(shares(problem, cohort, weighting), ends) if cohort else x
        history.append(np.concatenate([part for some in (base, x["a"], x["b"], x["whole"]) for part in _lora.listed(some)]))
    return history


def filled(parts, rank):
    """Adapters of this rank, with rows of A and columns of B of zeros."""
    more = {k: rank - len(v) for k, v in parts["a"].items()}
    return {**parts, "a": {k: np.pad(v, ((0, more[k]), (0, 0))) for k, v in parts["a"].items()},
            "b": {k: np.pad(v, ((0, 0), (0, more[k]))) for k, v in parts["b"].items()}}
