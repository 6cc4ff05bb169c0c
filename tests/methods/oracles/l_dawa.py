"""L-DAWA: FedAvg in the first rounds; then, tensor by tensor, x_l <- mean over the cohort of min(cos(y_l, x_l), 1) y_l, with x_l the
global model's before the round; where a norm is zero the client counts with one.
"""
from __future__ import annotations

import numpy as np
from oracles import fedavg
from oracles._common import sgd


def cosine(y, x):
    norms = np.linalg.norm(y) * np.linalg.norm(x)
    return min(np.vdot(y, x) / norms, 1.0) if norms else 1.0


def run(problem, turns, *, lr, warmup=3):
    history = fedavg.run(problem, turns[:warmup], lr=lr)
    for cohort in turns[warmup:]:
        x = history[-1] if history else problem.start
        if cohort:
            old = problem.tensors(x)
            ends = [problem.tensors(sgd(problem, x, turn.batches, lr)) for turn in cohort]
            x = problem.flat({name: np.mean([cosine(y[name], old[name]) * y[name] for y in ends], 0) for name in old})
        history.append(x)
    return history
