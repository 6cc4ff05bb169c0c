"""FedLAW: after local SGD the server fits, by Adam with betas 0.5 and 0.999 on the cross entropy over its labelled public set, the
numbers behind the weights (exp(g) softmax(a), or g^2 a^2 / sum a^2) of the mean of the clients' models. Both start at p_i.
"""
from __future__ import annotations

import numpy as np
from oracles._common import Adam, sgd, shares
from oracles._tanh import cross_entropy


def weights(a, g, form):
    if form == "softmax":
        e = np.exp(a - a.max())
        return np.exp(g) * e / e.sum()
    return g**2 * a**2 / (a**2).sum()


def slopes(a, g, form, dw):
    """The slopes in a and g, of those in the weights."""
    w = weights(a, g, form)
    if form == "softmax":
        s = w / w.sum()
        da = w * (dw - (s * dw).sum())
        return da, (w * dw).sum()
    total = (a**2).sum()
    return g**2 * 2 * a / total * (dw - (a**2 * dw).sum() / total), 2 / g * (w * dw).sum()


def run(problem, turns, *, lr, server_lr=0.01, server_epochs=20, server_batch=128, form="softmax", order="together"):
    x, history = problem.start, []
    inputs, labels = problem.public
    assert server_batch >= len(labels)  # one step an epoch
    for cohort in turns:
        ys = np.stack([sgd(problem, x, turn.batches, lr) for turn in cohort])
        p = shares(problem, cohort, "examples")
        a, g = (np.log(p), 0.0) if form == "softmax" else (np.sqrt(p), 1.0)
        half = server_epochs // 2
        for epochs, what in [(server_epochs, "ag")] if order == "together" else [(half, "a"), (server_epochs - half, "g")]:
            adam, late = Adam(len(a) + 1, 0.5), []
            for epoch in range(epochs):
                dm = cross_entropy(problem, weights(a, g, form) @ ys, inputs, labels)
                da, dg = slopes(a, g, form, ys @ dm)
                move = server_lr * 0.5 ** (epoch // 20) * adam.step(np.append(da, dg))
                a = a - move[:-1] * ("a" in what)
                g = g - move[-1] * ("g" in what)
                if epoch + 1 >= 6:
                    late.append(a)
            if what == "a" and late:
                a = np.mean(late, 0)
        x = weights(a, g, form) @ ys
        history.append(x)
    return history
