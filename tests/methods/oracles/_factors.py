"""The classifier whose first matrix is a product of factors: x1 [m, R], y1 [n, R], x2, y2, and b1, b2, w2 as they are.

In a flat vector the parts are b1, b2, x1, y1, [x2, y2], w2.
"""
from __future__ import annotations

import math

import numpy as np
import plan

ORDER = ("b1", "b2", "x1", "y1", "x2", "y2", "w2")


def first(problem, root, share, form, start):
    """The factors at the start."""
    parts = problem.tensors(problem.start)
    w = parts.pop("w1")
    m, n = w.shape
    low = math.ceil(math.sqrt(min(m, n)))
    R = max(low, round((1 - share) * low + share * m * n / (2 * (m + n))))
    width, names = (2 * R, ("x1", "y1")) if form == "low_rank" else (R, ("x1", "y1", "x2", "y2"))
    he, matched = np.sqrt(2 / width), (np.mean(w**2) / (width if form == "low_rank" else R**2)) ** (1 / (2 * len(names)))
    for name in names:
        shape = (m if name[0] == "x" else n, width)
        purpose = {"1": "one/", "2": "two/"}[name[1]] + name[0]
        parts[name] = (he if start == "he" else matched) * plan.drawn("normal", root, ("params", "w1", purpose), shape)
    return parts


def flat(parts):
    return np.concatenate([np.ravel(parts[k]) for k in ORDER if k in parts])


def slopes(problem, parts, rows, form):
    """{part: gradient}."""
    W1, W2 = parts["x1"] @ parts["y1"].T, 1.0
    if form != "low_rank":
        W2 = parts["x2"] @ parts["y2"].T + (form == "shifted")
    whole = {"b1": parts["b1"], "b2": parts["b2"], "w1": W1 * W2, "w2": parts["w2"]}
    g = problem.tensors(problem.gradient(problem.flat(whole), rows))
    w = g.pop("w1")
    g |= {"x1": (w * W2) @ parts["y1"], "y1": (w * W2).T @ parts["x1"]}
    return g if form == "low_rank" else g | {"x2": (w * W1) @ parts["y2"], "y2": (w * W1).T @ parts["x2"]}


def trained(problem, parts, passes, lr, form):
    for rows in passes:
        g = slopes(problem, parts, rows, form)
        parts = {k: v - lr * g[k] for k, v in parts.items()}
    return parts
