"""FedETF: FedAvg with heavy-ball SGD of (body, W, w, s), where h = z W + w, n = h / |h|, logits = s n M, on the cross entropy of
logits + log max(counts, 1). M = sqrt(C / (C - 1)) P (I - 11^T / C), P the Gram-Schmidt basis of a drawn matrix.

A client's own model: one such pass from the server's, then turns of plain SGD on the plain cross entropy in M_k alone, and of SGD with
momentum 0.9 in (W, w) alone. In a flat vector the parts are b1, w1, w, W, s, [M_k].
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import momentum_of, shares
from oracles._tanh import low, low_slope


def simplex(width, classes, seed):
    basis = []
    for column in np.random.default_rng(seed).normal(size=(width, classes)).T:
        for q in basis:
            column = column - (q @ column) * q
        basis.append(column / np.linalg.norm(column))
    return np.sqrt(classes / (classes - 1)) * np.array(basis).T @ (np.eye(classes) - np.full((classes, classes), 1 / classes))


def slopes(problem, y, rows, prior):
    """{part: gradient} of the mean cross entropy."""
    inputs, labels = problem.examples(rows)
    whole = problem.flat({**problem.tensors(0 * problem.start), "b1": y["b1"], "w1": y["w1"]})
    z = low(problem, whole, inputs)
    h = z @ y["W"] + y["w"]
    size = np.linalg.norm(h, axis=1, keepdims=True)
    n = h / size
    logits = y["s"] * n @ y["M"] + prior
    e = np.exp(logits - logits.max(1, keepdims=True))
    d = (e / e.sum(1, keepdims=True) - np.eye(y["M"].shape[1])[labels]) / len(rows)
    dn = y["s"] * d @ y["M"].T
    dh = (dn - n * (n * dn).sum(1, keepdims=True)) / size
    body = problem.tensors(low_slope(problem, whole, inputs, z, dh @ y["W"].T))
    return {"b1": body["b1"], "w1": body["w1"], "w": dh.sum(0), "W": z.T @ dh, "s": (d * (n @ y["M"])).sum(), "M": y["s"] * n.T @ d}


def trained(problem, y, passes, names, lr, rho, prior=0.0):
    """Heavy-ball SGD, from rest, in the parts of these names."""
    momentum = dict.fromkeys(names, 0.0)
    for rows in passes:
        g = slopes(problem, y, rows, prior)
        momentum = {k: rho * momentum[k] + g[k] for k in names}
        y = {**y, **{k: y[k] - lr * momentum[k] for k in names}}
    return y


def flat(y, own=False):
    return np.concatenate([np.ravel(y[k]) for k in ("b1", "w1", *("wWsM" if own else "wWs"))])


def run(problem, turns, *, lr, temperature=10.0, head="head", tune_turns=20, tune_epochs=3, head_lr=0.1, projection_lr=0.05, seed=0,
        weighting="examples", client_optimizer="momentum:0.9", evaluation=None, own=None, root=None):
    first, rho = problem.tensors(problem.start), momentum_of(client_optimizer)
    width, classes = first["w2"].shape
    W = plan.drawn("normal", root, ("params", "projection"), (width, width)) / np.sqrt(width)
    x = {"b1": first["b1"], "w1": first["w1"], "w": np.zeros(width), "W": W, "s": temperature, "M": simplex(width, classes, seed)}
    names, priors, history = ("b1", "w1", "w", "W", "s"), np.log(np.maximum(problem.population.counts, 1)), []
    for cohort in turns:
        ends = [trained(problem, x, turn.batches, names, lr, rho, priors[turn.client]) for turn in cohort]
        p = shares(problem, cohort, weighting)
        x = {**x, **{k: sum(a * y[k] for a, y in zip(p, ends)) for k in names}} if cohort else x
        history.append(flat(x))
        own.append([])
        for turn in evaluation:
            y = trained(problem, x, turn.batches, names, lr, rho, priors[turn.client])
            for i in range(tune_turns):
                y = trained(problem, y, turn.again(i, "simplex", epochs=tune_epochs, local_steps=0), ("M",), head_lr, 0.0)
                y = trained(problem, y, turn.again(i, "projection", epochs=tune_epochs, local_steps=0), ("w", "W"), projection_lr, 0.9)
            own[-1].append(flat(y, own=True))
    return history
