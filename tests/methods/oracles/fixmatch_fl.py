"""FixMatch-FedAvg: in each of as many steps as FedAvg on all of a client's rows, the gradient on a batch of labeled rows, plus the sum over a
batch of unlabeled ones of the gradient of CE(strong, argmax of the labeler on weak) where its largest probability is at least the threshold,
divided by the batch's size. The labeler is the model itself, the one received or a running mean after each step. Then the server's full steps.
"""
from __future__ import annotations

import numpy as np
from oracles._common import shares
from oracles._semi import rows_of, version
from oracles._tanh import cross_entropy, logits, softmax


def run(problem, turns, *, lr, threshold=0.95, weight=1.0, ratio=1, labeler="local", decay=0.99, weak="", strong="", server_epochs=0,
        server_lr=0.1, weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        ends = []
        for turn in cohort:
            labeled, others = rows_of(problem, turn.client)
            steps = len(turn.batches)
            wide = {"batch_size": ratio * len(turn.batches[0])} if ratio > 1 else {}
            known, unknown = turn.again(rows=labeled, count=steps), turn.again("unlabeled", rows=others, count=steps, **wide)
            y = z = x
            for t in range(steps):
                g = problem.gradient(y, known[t]) if len(known[t]) else 0.0
                u = problem.examples(unknown[t])[0]
                p = softmax(logits(problem, {"local": y, "global": x, "ema": z}[labeler], version("weak", weak, u, turn.key, "steps", t))) if len(u) else np.zeros((0, 1))
                sure = p.max(1) >= threshold
                if sure.any():
                    hard = version("strong", strong, u, turn.key, "steps", t)[sure]
                    g = g + weight * sure.mean() * cross_entropy(problem, y, hard, p[sure].argmax(1))
                y = y - lr * g
                z = decay * z + (1 - decay) * y
            ends.append(y)
        x = shares(problem, cohort, weighting) @ np.stack(ends)
        for _ in range(server_epochs):
            x = x - server_lr * cross_entropy(problem, x, *problem.public)
        history.append(x)
    return history
