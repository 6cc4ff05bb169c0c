"""FedIT: clients train copies of (A, B) on a frozen base, and the server averages A and B, each by itself.

The engine's parameters are {"frozen": {"base"}, "params": {"a", "b", "whole"}}, flat in this order.
"""
from __future__ import annotations

import numpy as np
from oracles import _lora
from oracles._common import momentum_of, shares


def run(problem, turns, *, lr, rank=16, scale=1.0, where=(), whole=(), start="kaiming", weighting="examples", client_optimizer="adamw",
        root=None):
    base, x = _lora.start(problem, where, whole, rank, start, root)
    history, rho = [], momentum_of(client_optimizer)
    for cohort in turns:
        ends = [_lora.trained(problem, base, x, scale, turn.batches, lr, rho=rho) for turn in cohort]
        x = _lora.mean(shares(problem, cohort, weighting), ends) if cohort else x
        history.append(np.concatenate([part for some in (base, x["a"], x["b"], x["whole"]) for part in _lora.listed(some)]))
    return history
