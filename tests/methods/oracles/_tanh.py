"""The tanh classifier by hand, in float64: z = tanh(x w1 + b1), logits z w2 + b2."""
from __future__ import annotations

import numpy as np


def low(problem, y, x):
    """Features z [B, F] of inputs x."""
    p = problem.tensors(y)
    return np.tanh(x @ p["w1"] + p["b1"])


def low_slope(problem, y, x, z, dz):
    """The gradient [d] of what has the slope dz [B, F] in the features z of x; zero in the head."""
    dh = dz * (1 - z**2)
    return problem.flat({**problem.tensors(0 * y), "b1": dh.sum(0), "w1": x.T @ dh})


def head_slope(problem, y, z, target):
    """Of the head's mean cross entropy on z [B, F] with targets [B, C]: the gradient [d], zero below the head, and the slope in z."""
    p = problem.tensors(y)
    logits = z @ p["w2"] + p["b2"]
    e = np.exp(logits - logits.max(1, keepdims=True))
    d = (e / e.sum(1, keepdims=True) - target) / len(z)
    return problem.flat({**problem.tensors(0 * y), "b2": d.sum(0), "w2": z.T @ d}), d @ p["w2"].T
