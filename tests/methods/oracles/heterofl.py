"""HeteroFL: client i has the first ceil(r C) hidden units, r its width, and trains them with the hidden layer's sums divided by r, by SGD
with momentum, on logits that are zero for the labels it does not have. An entry's new value is the mean over those who hold it; a column
of the head counts only for clients with its label. What nobody holds stays.
"""
from __future__ import annotations

import math

import numpy as np
import plan
from oracles._common import momentum_of
from oracles._tanh import logits, pulled, softmax


def holding(problem, width):
    """[d] bool."""
    marks = {k: np.zeros(a.shape, bool) for k, a in problem.tensors(problem.start).items()}
    n = math.ceil(width * len(marks["b1"]))
    marks["w1"][:, :n] = marks["b1"][:n] = marks["w2"][:n] = marks["b2"][:] = True
    return problem.flat(marks).astype(bool)


def slope(problem, y, rows, divided, known):
    x, labels = problem.examples(rows)
    p = softmax(np.where(known, logits(problem, y * divided, x), 0))
    p[np.arange(len(labels)), labels] -= 1
    return pulled(problem, y * divided, x, p * known / len(labels)) * divided


def run(problem, turns, *, lr, widths=(1.0, 0.5, 0.25, 0.125, 0.0625), redrawn=False, scaler=True, labels=True, weighting="uniform",
        client_optimizer="momentum:0.9", seed=0, head="head"):
    x, history, rho = problem.start, [], momentum_of(client_optimizer)
    like = problem.tensors(x)
    for clock, cohort in enumerate(turns):
        total, weight = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            level = turn.client % len(widths)
            if redrawn:
                level = int(plan.drawn("randint", plan.key_of(seed), (clock, turn.client), (), 0, len(widths)))
            r = widths[level]
            held = holding(problem, r)
            known = problem.population.counts[turn.client] > 0 if labels else np.ones(3, bool)
            by = (1 / r if scaler else 1.0)
            divided = problem.flat({**{k: np.ones_like(a) for k, a in like.items()}, "w1": by + 0 * like["w1"], "b1": by + 0 * like["b1"]})
            y, m = x * held, np.zeros_like(x)
            for rows in turn.batches:
                m = rho * m + slope(problem, y, rows, divided, known) * held
                y = y - lr * m
            mine = problem.flat({k: np.ones_like(a) * (known if k in ("w2", "b2") else 1) for k, a in like.items()})
            p = held * mine * (problem.size[turn.client] if weighting == "examples" else 1.0)
            total, weight = total + p * (y - x), weight + p
        x = x + total / np.where(weight > 0, weight, 1)
        history.append(np.where(holding(problem, max(widths)), x, 0))
    return history
