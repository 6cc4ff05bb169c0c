"""FedLEx: scouts train from w0 for `cap` epochs, or until `patience` of them bring no lower training loss, and end at s_i. For each
tensor V = mean_i (s_i - w0)^2 and G = (V - min V) / (max V - min V), or (V - median V) / IQR V within [0, 1]; 1 where that divides by
zero. Then FedAvgM from w0, with every local gradient, or every update, times G.

w0 is the first model after an averaged epoch of everybody. Of the cohort, V is the mean over the scouts that were drawn.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import shares


def phase(warm=True, **options) -> int:
    """Which exchange of a round trains: others bring the epoch of everybody, the scouts, and their guidance to the clients."""
    return 2 + warm


def guided(problem, V, scale):
    G = {}
    for name, v in problem.tensors(V).items():
        low, span = (v.min(), np.ptp(v)) if scale == "range" else (np.median(v), np.subtract(*np.percentile(v, [75, 25])))
        G[name] = np.clip((v - low) / span, 0, 1) if span > 0 else np.ones_like(v)
    return problem.flat(G)


def optimizer(name, lr):
    """Fresh: gradient -> step, of SGD, or of RMSProp as "rmsprop:eps=.."."""
    if name == "sgd":
        return lambda g: -lr * g
    v = 0

    def step(g):
        nonlocal v
        v = 0.9 * v + 0.1 * g**2
        return -lr * g / np.sqrt(v + float(name.removeprefix("rmsprop:eps=")))

    return step


def explored(problem, w0, batches, step, cap, patience):
    y, best, waited, each = w0, np.inf, 0, len(batches) // cap
    for epoch in range(cap):
        losses = []
        for rows in batches[epoch * each : (epoch + 1) * each]:
            losses.append(problem.loss(y, rows))
            y = y + step(problem.gradient(y, rows))
        best, waited = (np.mean(losses), 0) if np.mean(losses) < best else (best, waited + 1)
        if waited == patience:
            break
    return y


def trained(problem, y, batches, step, G, mask_on):
    before, after = (G if mask_on == place else 1 for place in ("gradient", "update"))
    for rows in batches:
        y = y + after * step(before * problem.gradient(y, rows))
    return y


def run(problem, turns, *, lr, scouts=1.0, cap=150, patience=40, warm=True, scale="range", guidance="fixed", mask_on="gradient", beta=0.9,
        server_lr=1.0, weighting="examples", client_optimizer="sgd", everyone=None, root=None):
    def fresh():
        return optimizer(client_optimizer, lr)

    x, history = problem.start, []
    if warm:
        first = everyone(0, epochs=1, local_steps=0)[0]
        x = shares(problem, first, weighting) @ np.array([trained(problem, x, turn.batches, fresh(), 1, "nothing") for turn in first])
    exploring = plan.drawn("permutation", root, ("server",), problem.clients) < max(1, round(scouts * problem.clients))
    squares = {turn.client: (explored(problem, x, turn.batches, fresh(), cap, patience) - x) ** 2
               for turn in everyone(int(warm), epochs=cap, local_steps=0)[0] if exploring[turn.client]}
    G, m = guided(problem, np.mean(list(squares.values()), 0), scale), 0
    for cohort in turns:
        if guidance == "cohort" and cohort:
            G = guided(problem, np.mean([squares[turn.client] for turn in cohort], 0), scale)
        delta = 0
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            delta = delta + p * (x - trained(problem, x, turn.batches, fresh(), G, mask_on))
        m = beta * m + delta
        x = x - server_lr * m
        history.append(x)
    return history
