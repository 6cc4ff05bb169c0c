"""FedImpro: per step z are the features of the batch, b rows, and z' ~ N(mu_c, sigma_c^2), constants, for C (b // C + 1) labels
that cycle over the classes; descend CE(z) + w CE(z'), or with 1 - w and w, w = round / ramp; then by classes of the batch
mu_c <- (1 - omega) mu_c + omega mean_c z, sigma_c alike, at most sigma_max. Server: FedAvg; mu, sigma plain means, or by class
counts the mean and the deviation of the union.

At the start mu ~ U(0, 1), sigma = sigma_max. A deviation needs two examples of a class in the batch. 1 - w is never below zero.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import shares
from oracles._tanh import head_slope, low, low_slope


def followed(mu, sigma, z, labels, omega, sigma_max):
    mu, sigma = mu.copy(), sigma.copy()
    for c in np.unique(labels):
        own = z[labels == c]
        mu[c] = (1 - omega) * mu[c] + omega * own.mean(0)
        if len(own) > 1:
            sigma[c] = (1 - omega) * sigma[c] + omega * own.std(0, ddof=1)
    return mu, np.minimum(sigma, sigma_max)


def pooled(mus, sigmas, counts, mu, sigma):
    """Of the union of the cohort's examples, counts [S, C] of them; a class that nobody has stays as it is."""
    mu, sigma = mu.copy(), sigma.copy()
    for c in np.flatnonzero(counts.sum(0)):
        n = counts[:, c : c + 1]
        mu[c] = (n * mus[:, c]).sum(0) / n.sum()
        within, between = np.maximum(n - 1, 0) * sigmas[:, c] ** 2, n * (mus[:, c] - mu[c]) ** 2
        sigma[c] = np.sqrt((within + between).sum(0) / n.sum())
    return mu, sigma


def run(problem, turns, *, lr, sigma_max=0.1, ramp=500.0, cap=True, mix="added", omega=1.0, statistics="plain", noise=0.0,
        weighting="examples", root=None):
    x, history, counts = problem.start, [], problem.population.counts
    shape = counts.shape[1], len(problem.tensors(x)["b1"])
    most = shape[0] * (max(len(rows) for cohort in turns for turn in cohort for rows in turn.batches) // shape[0] + 1)
    mu, sigma = plan.drawn("uniform", root, ("server",), shape), np.full(shape, sigma_max)
    for r, cohort in enumerate(turns):
        w = min(r / ramp, 1) if cap or mix == "blended" else r / ramp
        change, sent = 0, []
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, m, s = x, mu, sigma
            for t, rows in enumerate(turn.batches):
                normal = plan.drawn("normal", turn.key, ("steps", t, "drawn"), (most, shape[1]))  # fewer rows are the first of more
                v, z, labels = slope(problem, y, rows, m, s, normal, (1 - w if mix == "blended" else 1, w))
                y, (m, s) = y - lr * v, followed(m, s, z, labels, omega, sigma_max)
            change = change + p * (y - x)
            sent.append([v + noise * plan.drawn("normal", turn.key, (name,), shape) for name, v in (("mean", m), ("deviation", s))])
        if cohort:
            mus, sigmas = (np.array(each) for each in zip(*sent))
            here = counts[[turn.client for turn in cohort]]
            mu, sigma = (mus.mean(0), sigmas.mean(0)) if statistics == "plain" else pooled(mus, sigmas, here, mu, sigma)
        x = x + change
        history.append(x)
    return history


def slope(problem, y, rows, mu, sigma, normal, weights):
    """The gradient at y, and the batch's features and labels."""
    inputs, labels = problem.examples(rows)
    classes, z = np.eye(len(mu)), low(problem, y, inputs)
    drawn = np.arange(len(mu) * (len(rows) // len(mu) + 1)) % len(mu)
    other = mu[drawn] + sigma[drawn] * normal[: len(drawn)]
    head, dz = head_slope(problem, y, z, classes[labels])
    return weights[0] * (head + low_slope(problem, y, inputs, z, dz)) + weights[1] * head_slope(problem, y, other, classes[drawn])[0], z, labels
