"""MOON: loss + mu mean_b l, l = -log[e^{s(z, z_g) / tau} / (e^{s(z, z_g) / tau} + e^{s(z, z_p) / tau})], s the cosine.

z are features of y, z_g of x, z_p of the client's previous local model (x at its first participation); z_g, z_p are constant.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def cosine(z, a):
    """s [B] and ds/dz [B, F]; zero where a row is zero."""
    z_norm, a_norm = np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(a, axis=1, keepdims=True)
    there = z_norm * a_norm > 0
    z_norm, a_norm = np.where(there, z_norm, 1), np.where(there, a_norm, 1)
    s = (z * a).sum(1, keepdims=True) / (z_norm * a_norm)
    return s[:, 0], np.where(there, a / (z_norm * a_norm) - s * z / z_norm**2, 0)


def slope(z, z_g, z_p, tau):
    """d mean l / dz [B, F]: l = log(1 + e^{(s_p - s_g) / tau})."""
    (s_g, d_g), (s_p, d_p) = cosine(z, z_g), cosine(z, z_p)
    share = 1 / (1 + np.exp((s_g - s_p) / tau))
    return share[:, None] * (d_p - d_g) / tau / len(z)


def run(problem, turns, *, lr, mu=1.0, tau=0.5, weighting="examples"):
    x, previous, history = problem.start, {}, []
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, past = x, previous.get(turn.client, x)
            for rows in turn.batches:
                dz = slope(*(problem.features(v, rows) for v in (y, x, past)), tau)
                y = y - lr * (problem.gradient(y, rows) + mu * problem.pullback(y, rows, dz))
            previous[turn.client] = y
            change += p * (y - x)
        x = x + change
        history.append(x)
    return history
