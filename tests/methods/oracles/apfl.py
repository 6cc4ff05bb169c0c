"""APFL: per batch, all from the values before it, vbar = a v + (1 - a) w: w <- w - lr gradient(w), v <- v - lr a gradient(vbar),
a <- a - lr <v - w, gradient(vbar)> within [0, 1]; w starts from x and is averaged, v_i (from x^0) and a_i stay.

A client is evaluated with a_i v_i + (1 - a_i) w_i, w_i as it was when the client last took part (x^0 before).
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares


def run(problem, turns, *, lr, share=0.5, adaptive=True, weighting="examples", own=None):
    x, history = problem.start, []
    last, v, a = np.array([x] * problem.clients), np.array([x] * problem.clients), np.full((problem.clients, 1), share)
    for cohort in turns:
        change = np.zeros_like(x)
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            w, v_i, a_i = x, v[turn.client], a[turn.client]
            for rows in turn.batches:
                g = problem.gradient(a_i * v_i + (1 - a_i) * w, rows)
                moved = np.clip(a_i - lr * (v_i - w) @ g, 0, 1) if adaptive else a_i
                w, v_i, a_i = w - lr * problem.gradient(w, rows), v_i - lr * a_i * g, moved
            last[turn.client], v[turn.client], a[turn.client] = w, v_i, a_i
            change += p * (w - x)
        x = x + change
        own.append(a * v + (1 - a) * last)
        history.append(x)
    return history
