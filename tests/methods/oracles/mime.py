"""Mime: local gradients are variance-reduced by the cohort's mean gradient c, which an exchange before the training brings."""
from __future__ import annotations

from oracles._mime import mimic


def phase(**options) -> int:
    """Which exchange of a round trains."""
    return 1


def run(problem, turns, *, lr, base="momentum", beta=0.9, beta2=0.99, eps=1e-3, server_lr=1.0, weighting="examples"):
    return mimic(problem, turns, True, lr, base, beta, beta2, eps, server_lr, weighting)
