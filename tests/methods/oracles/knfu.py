"""KnFu: the drawn clients train their own models, say their softmax on the public examples, and each is tuned, by KL times T^2, towards
the mean of what was said, weighted by exp(-beta distance) of the clients' label frequencies, which are smoothed by 1e-3.
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd
from oracles._tanh import logits, pulled, softmax


def apart(p, q, dist):
    return 0.5 * np.abs(p - q).sum() if dist == "variation" else (p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()


def run(problem, turns, *, lr, beta=10.0, temperature=1.0, dist="kl", nearest=0, tune_epochs=1, tune_batch=64, own=None):
    x, _ = problem.public
    assert tune_batch >= len(x)  # one step an epoch
    counts = problem.population.counts.astype(np.float64)
    labels = counts / counts.sum(1, keepdims=True) + 1e-3
    labels /= labels.sum(1, keepdims=True)
    theta, history = [problem.start] * problem.clients, []
    for cohort in turns:
        for turn in cohort:
            theta[turn.client] = sgd(problem, theta[turn.client], turn.batches, lr)
        said = {turn.client: softmax(logits(problem, theta[turn.client], x) / temperature) for turn in cohort}
        for n in said:
            far = {m: apart(labels[n], labels[m], dist) for m in said}
            kept = sorted(far, key=far.get)[: nearest or len(far)]
            a = {m: np.exp(-beta * far[m]) for m in kept}
            fused = sum(a[m] * said[m] for m in kept) / sum(a.values())
            for _ in range(tune_epochs):
                slope = temperature * (softmax(logits(problem, theta[n], x) / temperature) - fused) / len(x)
                theta[n] = theta[n] - lr * pulled(problem, theta[n], x, slope)
        own.append(np.array(theta))
        history.append(problem.start)
    return history
