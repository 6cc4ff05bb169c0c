"""FedDisco: FedAvg with weights ReLU(p_k - a d_k + b) that are made to sum to one, p_k where none is above zero. d_k is the distance
of the client's labels from the target: KL, divided by its sum over the cohort, |D_k - T| or 1 - cos.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, shares


def distances(labels, target, metric):
    if metric == "kl":
        ratio = np.where(labels > 0, labels / target, 1)
        d = (labels * np.log(ratio)).sum(1)
        return d / d.sum() if d.sum() > 0 else 0 * d
    if metric == "l2":
        return np.linalg.norm(labels - target, axis=1)
    return 1 - labels @ target / np.linalg.norm(labels, axis=1) / np.linalg.norm(target)


def weights(p, counts, a, b, metric, target):
    labels = counts / counts.sum(1, keepdims=True)
    classes = labels.shape[1]
    target = np.array(target) if len(target) else np.full(classes, 1 / classes)
    raw = np.maximum(p - a * distances(labels, target, metric) + b, 0)
    return raw / raw.sum() if raw.any() else p


def run(problem, turns, *, lr, a=0.5, b=0.1, metric="kl", target=()):
    x, history, counts = problem.start, [], problem.population.counts.astype(np.float64)
    for cohort in turns:
        p = shares(problem, cohort, "examples")
        w = weights(p, counts[[turn.client for turn in cohort]], a, b, metric, target)
        x = sum(w_k * sgd(problem, x, turn.batches, lr) for w_k, turn in zip(w, cohort))
        history.append(x)
    return history
