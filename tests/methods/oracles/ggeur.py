"""GGEUR: the head is trained by FedAvg, full batches, on the frozen features of a client's examples and on drawn ones.

Sigma_c is the population covariance of class c over all examples of all clients, its root R_c symmetric (or Sigma_c itself with the
scale "eigenvalue"; with a stretch the largest or smallest ten eigenvalues are first multiplied by 5 .. 1). With one domain a client
tops every class that it has up to `target`: the j-th new one is its example number j mod n_c plus R_c e. With others' means a class has
`near` candidates of that kind, if the client has the class, then `around` at the mean of every other client that has it; as many of
them as are missing to `target` are drawn.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import momentum_of


def phase(**options):
    return 2


def root_of(sigma, scale, stretch):
    lam, xi = np.linalg.eigh(sigma)
    few = min(10, len(lam))
    factor = np.ones(len(lam))
    if stretch == "largest":
        factor[::-1][:few] = np.linspace(5, 1, 10)[:few]
    if stretch == "smallest":
        factor[:few] = np.linspace(5, 1, 10)[:few]
    s = np.maximum(lam * factor, 0)
    return xi @ np.diag(np.sqrt(s) if scale == "sqrt" else s) @ xi.T


def run(problem, turns, *, lr, target=500, around=0, near=500, scale="sqrt", stretch="none", head="head", weighting="examples", client_optimizer="sgd",
        root=None):
    first, n = problem.tensors(problem.start), problem.clients
    z = [problem.features(problem.start, problem.rows(i)) for i in range(n)]
    y = [problem.examples(problem.rows(i))[1] for i in range(n)]
    classes, rho = range(first["w2"].shape[1]), momentum_of(client_optimizer)
    pool = [np.concatenate([z[i][y[i] == c] for i in range(n)]) for c in classes]
    geometry = [root_of((p - p.mean(0)).T @ (p - p.mean(0)) / len(p), scale, stretch) for p in pool]

    def drawn(i):
        zs, ys = list(z[i]), list(y[i])
        for c in classes:
            mine = z[i][y[i] == c]
            if around:
                centers = [mine[k % len(mine)] for k in range(near)] if len(mine) else []
                centers += [z[m][y[m] == c].mean(0) for m in range(n) if m != i and (y[m] == c).any() for _ in range(around)]
                numbers = plan.shuffled(root, ("server", i, c, "which"), len(centers))[: max(target - len(mine), 0)]
            else:
                centers = [mine[k % len(mine)] for k in range(target - len(mine))] if len(mine) else []
                numbers = range(len(centers))
            for k in numbers:
                zs.append(centers[k] + geometry[c] @ plan.drawn("normal", root, ("server", i, c, int(k)), (z[i].shape[1],)))
                ys.append(c)
        return np.array(zs), np.array(ys)

    data, (W, b), history = [drawn(i) for i in range(n)], (first["w2"], first["b2"]), []
    for cohort in turns:
        ends, sizes = [], []
        for turn in cohort:
            zs, ys = data[turn.client]
            V, d, mV, md = W, b, 0.0, 0.0
            for _ in turn.batches:
                logits = zs @ V + d
                e = np.exp(logits - logits.max(1, keepdims=True))
                slope = (e / e.sum(1, keepdims=True) - np.eye(len(d))[ys]) / len(ys)
                mV, md = rho * mV + zs.T @ slope, rho * md + slope.sum(0)
                V, d = V - lr * mV, d - lr * md
            ends.append((V, d))
            sizes.append(len(ys) if weighting == "examples" else 1)
        p = np.array(sizes) / np.sum(sizes)
        W, b = (sum(a * end[k] for a, end in zip(p, ends)) for k in (0, 1))
        history.append(problem.flat({**first, "w2": W, "b2": b}))
    return history
