"""FRL: weights sign * sqrt(2 / fan_in) that nobody trains, of which the share `keep` with the largest |scores| in each matrix is used.
Clients train scores (slope sign(s) W dL/dweight, heavy-ball SGD with weight decay, rates on a cosine down to zero within the round) and send
the places of the entries in ascending order; places are summed, and entries get the initial scores again, sorted, in the order of the sums.
"""
from __future__ import annotations

import numpy as np
import plan


def places(a):
    flat = np.argsort(a.ravel(), kind="stable")
    found = np.empty(flat.size, int)
    found[flat] = np.arange(flat.size)
    return found.reshape(a.shape)


def settings(text):
    values = dict(item.split("=") for item in text.partition(":")[2].split(",") if "=" in item)
    return (float(values.get("momentum", 0.9)) if text.startswith("momentum") else 0.0), float(values.get("weight_decay", 0))


def run(problem, turns, *, lr, keep=0.5, rank="size", client_optimizer="momentum:momentum=0.9,weight_decay=0.0001", root=None):
    first, (rho, decay) = problem.tensors(problem.start), settings(client_optimizer)
    maps = [k for k, a in first.items() if a.ndim == 2]
    W = {k: np.sign(a) * np.sqrt(2 / len(a)) if k in maps else a for k, a in first.items()}
    low, high = (0.0 if rank == "size" else -1.0), 1.0
    s = {k: (low + (high - low) * plan.drawn("uniform", root, ("params", "scores", k), first[k].shape).astype(np.float64)) / np.sqrt(len(first[k]))
         for k in maps}
    values, history = {k: np.sort(s[k].ravel()) for k in maps}, []

    def weights(s):
        used = {k: places(np.abs(s[k])) >= s[k].size - round(keep * s[k].size) for k in maps}
        return problem.flat({k: a * used.get(k, 1) for k, a in W.items()})

    for cohort in turns:
        total = {k: np.zeros(first[k].shape, int) for k in maps}
        for turn in cohort:
            y, m = s, dict.fromkeys(maps, 0.0)
            for t, rows in enumerate(turn.batches):
                g = problem.tensors(problem.gradient(weights(y), rows))
                m = {k: rho * m[k] + np.sign(y[k]) * W[k] * g[k] + decay * y[k] for k in maps}
                y = {k: y[k] - lr * 0.5 * (1 + np.cos(np.pi * t / len(turn.batches))) * m[k] for k in maps}
            for k in maps:
                total[k] += places(np.abs(y[k]) if rank == "size" else y[k])
        s = {k: values[k][places(total[k])] for k in maps} if cohort else s
        history.append(np.concatenate([problem.flat(W), *(np.ravel(s[k]) for k in maps)]))
    return history
