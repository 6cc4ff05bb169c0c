"""FedDF: the mean of the clients' models is trained by Adam with a cosine decay so that its softmax meets that of the clients' mean
logits on public examples. Some are held out, and the student after the steps (looked at every 20 and at the end) with the best accuracy on
them is kept, at first the mean itself.
"""
from __future__ import annotations

import numpy as np
from oracles._common import Adam, sgd, shares
from oracles._tanh import logits, pulled, softmax


def run(problem, turns, *, lr, server_lr=1e-3, server_steps=200, server_batch=128, patience=1000, held_out=0.2, temperature=1.0):
    x, history = problem.start, []
    inputs, labels = problem.public
    kept = len(labels) - round(held_out * len(labels))
    u = inputs[:kept]
    assert server_batch >= kept

    def accuracy(v):
        return np.mean(logits(problem, v, inputs[kept:]).argmax(1) == labels[kept:])

    for cohort in turns:
        ys = [sgd(problem, x, turn.batches, lr) for turn in cohort]
        s = shares(problem, cohort, "examples") @ np.stack(ys)
        target = softmax(np.mean([logits(problem, y, u) for y in ys], 0) / temperature)
        best, most, since, adam = s, accuracy(s) if held_out else -1, 0, Adam(len(s))
        for t in range(server_steps):
            slope = (softmax(logits(problem, s, u) / temperature) - target) / temperature / kept
            rate = server_lr * 0.5 * (1 + np.cos(np.pi * t / server_steps))
            s, since = s - rate * adam.step(pulled(problem, s, u, slope)), since + 1
            if not held_out:
                best = s
            elif ((t + 1) % 20 == 0 or t + 1 == server_steps) and accuracy(s) > most:
                best, most, since = s, accuracy(s), 0
            if held_out and since >= patience:
                break
        x = best
        history.append(x)
    return history
