"""The classifier whose matrices have low-rank adapters: W + s (B A)^T, A [r, in], B [out, r]. Models are dicts of flat-sorted parts."""
from __future__ import annotations

import numpy as np
import plan


def fresh(problem, where, rank, start, key, path):
    """{name: A}, {name: 0} for the matrices with one of the words in their name."""
    shapes = {k: v.shape for k, v in problem.tensors(problem.start).items()}
    a, b = {}, {}
    for name, shape in shapes.items():
        if len(shape) == 2 and (not where or any(word in name for word in where)):
            m, n = shape
            if start == "orthogonal":
                a[name] = plan.drawn("orthogonal", key, (*path, name), rank, (), None, m).astype(np.float64)
            else:
                a[name] = (2 * plan.drawn("uniform", key, (*path, name), (rank, m)).astype(np.float64) - 1) / np.sqrt(m)
            b[name] = np.zeros((n, rank))
    return a, b


def start(problem, where, whole, rank, how, root):
    """The base {name: tensor} and the adapters of all clients, drawn from the run's key."""
    base = problem.tensors(problem.start)
    a, b = fresh(problem, where, rank, how, root, ("params", "adapters"))
    kept = {k: v for k, v in base.items() if any(word in k for word in whole)}
    return base, {"a": {k: v for k, v in a.items() if k not in kept}, "b": {k: v for k, v in b.items() if k not in kept}, "whole": kept}


def model(problem, base, parts, scale):
    """The flat model of a base {name: tensor} with adapters {"a", "b", "whole"}."""
    whole = {**base, **parts["whole"]}
    return problem.flat({k: v + scale * (parts["b"][k] @ parts["a"][k]).T if k in parts["a"] else v for k, v in whole.items()})


def slopes(problem, base, parts, scale, rows):
    """The gradient in the adapters and in what is trained whole."""
    g = problem.tensors(problem.gradient(model(problem, base, parts, scale), rows))
    a, b = parts["a"], parts["b"]
    return {"a": {k: scale * (g[k] @ b[k]).T for k in a}, "b": {k: scale * (a[k] @ g[k]).T for k in a}, "whole": {k: g[k] for k in parts["whole"]}}


def trained(problem, base, parts, scale, passes, lr, moving=("a", "b", "whole"), rho=0.0):
    """SGD with momentum rho on the parts that move."""
    m = {kind: {k: 0 * v for k, v in some.items()} for kind, some in parts.items()}
    for rows in passes:
        g = slopes(problem, base, parts, scale, rows)
        m = {kind: {k: rho * m[kind][k] + g[kind][k] for k in some} for kind, some in parts.items()}
        parts = {kind: {k: v - lr * m[kind][k] * (kind in moving) for k, v in some.items()} for kind, some in parts.items()}
    return parts


def mean(p, ends):
    """The average of several clients' parts."""
    return {kind: {k: sum(w * end[kind][k] for w, end in zip(p, ends)) for k in some} for kind, some in ends[0].items()}


def listed(tensors):
    return [np.ravel(tensors[k]) for k in sorted(tensors)]
