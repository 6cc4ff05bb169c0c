"""FedYogi: v <- v - (1 - beta2) u^2 sign(v - u^2)."""
from __future__ import annotations

import numpy as np
from oracles import _fedopt


def run(problem, turns, *, lr, server_lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3, weighting="examples"):
    def rule(v, u):
        return v - (1 - beta2) * u**2 * np.sign(v - u**2)

    return _fedopt.run(rule, problem, turns, lr=lr, server_lr=server_lr, beta1=beta1, tau=tau, weighting=weighting)
