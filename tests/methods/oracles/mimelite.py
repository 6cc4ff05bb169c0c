"""MimeLite: Mime with v = gradient(y; b), so that c is wanted by the server alone."""
from __future__ import annotations

from oracles._mime import mimic


def run(problem, turns, *, lr, base="momentum", beta=0.9, beta2=0.99, eps=1e-3, server_lr=1.0, weighting="examples"):
    return mimic(problem, turns, False, lr, base, beta, beta2, eps, server_lr, weighting)
