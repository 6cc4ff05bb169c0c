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


def logits(problem, v, x):
    p = problem.tensors(v)
    return np.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def pulled(problem, v, x, slope):
    """[d]: the gradient in v of sum(slope * logits)."""
    p = problem.tensors(v)
    h = np.tanh(x @ p["w1"] + p["b1"])
    back = slope @ p["w2"].T * (1 - h**2)
    return problem.flat({"w1": x.T @ back, "b1": back.sum(0), "w2": h.T @ slope, "b2": slope.sum(0)})


def cross_entropy(problem, v, x, y):
    """The gradient [d] of the mean cross entropy."""
    slope = softmax(logits(problem, v, x))
    slope[np.arange(len(y)), y] -= 1
    return pulled(problem, v, x, slope / len(y))
