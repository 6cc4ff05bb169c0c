"""FLoRA: a client of rank r_i draws A_i, starts from B_i = 0 on the current base and trains both; the base moves by
s sum_i p_i (B_i A_i)^T, computed here product by product, dense.
"""
from __future__ import annotations

from oracles import _lora
from oracles._common import momentum_of, shares


def run(problem, turns, *, lr, ranks=(16,), scale=2.0, where=(), whole=(), start="kaiming", weighting="examples", client_optimizer="adamw"):
    base, history, rho = problem.tensors(problem.start), [], momentum_of(client_optimizer)
    for cohort in turns:
        new = {k: v.copy() for k, v in base.items()}
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            r = ranks[turn.client % len(ranks)]
            a, b = _lora.fresh(problem, where, max(ranks), start, turn.key, ("fresh",))
            kept = {k: v for k, v in base.items() if any(word in k for word in whole)}
            first = {"a": {k: v[:r] for k, v in a.items() if k not in kept}, "b": {k: v[:, :r] for k, v in b.items() if k not in kept}, "whole": kept}
            end = _lora.trained(problem, base, first, scale, turn.batches, lr, rho=rho)
            for k in end["a"]:
                new[k] += scale * p * (end["b"][k] @ end["a"][k]).T
            for k in kept:
                new[k] += p * (end["whole"][k] - base[k])
        base = new
        history.append(problem.flat(base))
    return history
