"""Federated Reconnaissance: Adam trains the encoder in episodes of `ways` public classes, shots examples of each making a center and queries
others being told apart by the softmax of minus the squared distance. Then centers and numbers of all public classes; then every client, the
first time that it is drawn, adds its examples to them: P + (b / (n + b)) (mean - P). Flat: encoder, centers, numbers.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import Adam
from oracles._tanh import low, low_slope


def embedded(problem, e, x, unit):
    z = low(problem, e, x)
    length = np.linalg.norm(z, axis=1, keepdims=True) if unit else np.ones((len(z), 1))
    return z / length, length


def slope(problem, e, episode, unit):
    """The gradient [d] of one episode's mean cross entropy; episode: [(inputs of the support, inputs of the queries)] per class."""
    x = np.concatenate([np.concatenate(pair) for pair in episode])
    n, length = embedded(problem, e, x, unit)
    support, query, own, at = [], [], [], 0
    for j, (s, q) in enumerate(episode):
        support.append(np.arange(at, at + len(s)))
        query += list(range(at + len(s), at + len(s) + len(q)))
        own += [j] * len(q)
        at += len(s) + len(q)
    centers = np.stack([n[rows].mean(0) for rows in support])
    apart = n[query][:, None] - centers
    a = -(apart**2).sum(-1)
    p = np.exp(a - a.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True) - np.eye(len(centers))[own]) / len(own)
    dn = np.zeros_like(n)
    dn[query] = (p[..., None] * -2 * apart).sum(1)
    for rows, back in zip(support, (p[..., None] * 2 * apart).sum(0)):
        dn[rows] += back / len(rows)
    dz = (dn - n * (n * dn).sum(1, keepdims=True)) / length if unit else dn
    return low_slope(problem, e, x, n * length, dz)


def run(problem, turns, *, lr, episodes=300, ways=5, shots=5, queries=15, unit=False, legacy=False, client_optimizer="adam", root=None):
    assert client_optimizer == "adam"
    e, adam, (x, y), classes = problem.start, Adam(len(problem.start)), problem.public, problem.population.counts.shape[1]
    for i in range(episodes):
        first, second = (plan.drawn("uniform", root, ("round", 0, "serve0", i, what), (k,)) for what, k in (("classes", classes), ("examples", len(y))))
        chosen = sorted(set(y), key=lambda c: -first[c])[:ways]
        episode = []
        for c in chosen:
            rows = sorted(np.flatnonzero(y == c), key=lambda r: -second[r])
            episode.append((x[rows[:shots]], x[rows[shots:shots + queries]]))
        e = e - lr * adam.step(slope(problem, e, episode, unit))
    z, _ = embedded(problem, e, x, unit)
    n = np.bincount(y, minlength=classes).astype(float)
    P = np.stack([z[y == c].mean(0) if n[c] else 0 * z[0] for c in range(classes)])
    been, history = set(), []
    for cohort in turns:
        told = []
        for turn in cohort:
            inputs, labels = problem.examples(problem.rows(turn.client))
            z, _ = embedded(problem, e, inputs, unit)
            for c in set(labels) if turn.client not in been else ():
                b, mean = np.sum(labels == c), z[labels == c].mean(0)
                told.append((c, b, P[c] + b / (n[c] + b) * (mean - P[c]) if legacy else mean))
            been.add(turn.client)
        for c, b, mean in told:
            n[c] += b
            P[c] = P[c] + b / n[c] * (mean - P[c])
        history.append(np.concatenate([e, P.ravel(), n]))
    return history
