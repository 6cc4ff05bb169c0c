"""RFFL: clients keep models of their own; the server sends each the largest entries of the mean change, as many as its reputation earns.

delta_i = clip(w_i trained - w_i, bound);  g = sum omega_i delta_i over the reputable, omega the sizes at first, the reputation later;
r_i <- alpha r_i + (1 - alpha) cos(delta_i, g), no less than 0, summing to one;  from round `patience` on, who is below 1/(3|R|) is out;
w_i <- w_i + delta_i + g, of which in every tensor the ceil(r_i / max r * entries) largest stay.
"""
from __future__ import annotations

import math

import numpy as np
from oracles._common import clipped, sgd


def largest(problem, g, q):
    kept = {}
    for name, v in problem.tensors(g).items():
        order = np.argsort(-np.abs(v).ravel(), kind="stable")[: math.ceil(round(q * v.size, 4))]
        mask = np.zeros(v.size)
        mask[order] = 1
        kept[name] = v * mask.reshape(v.shape)
    return problem.flat(kept)


def run(problem, turns, *, lr, alpha=0.95, bound=0.5, patience=10, own=None):
    n = problem.clients
    w, r, inside, x, history = [problem.start] * n, np.zeros(n), np.ones(n, bool), problem.start, []
    for t, cohort in enumerate(turns):
        delta = {}
        for turn in cohort:
            change = sgd(problem, w[turn.client], turn.batches, lr) - w[turn.client]
            delta[turn.client] = clipped(change, bound) if np.linalg.norm(change) > 0 else change
        omega = np.array([(problem.size[i] if t == 0 else r[i]) * inside[i] for i in range(n)], float)
        omega = omega / omega.sum()
        g = sum(omega[i] * delta[i] for i in range(n))
        for i in range(n):
            size = np.linalg.norm(delta[i]) * np.linalg.norm(g)
            r[i] = max(alpha * r[i] + (1 - alpha) * (delta[i] @ g / size if size else 0), 0) if inside[i] else 0
        r = r / r.sum()
        if t >= patience:
            inside = inside & (r >= 1 / (3 * inside.sum()))
            r = np.where(inside, r, 0) / np.where(inside, r, 0).sum()
        w = [w[i] + delta[i] + largest(problem, g, r[i] / r.max()) for i in range(n)]
        own.append(np.array(w))
        x = x + g
        history.append(x)
    return history
