"""FedMD: every party has a model of its own. Before the first round it trains with Adam on the public examples, then on its own; in a
round the drawn ones say their logits on public examples, fit theirs to the mean by Adam on the mean absolute error, and train on their own.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import Adam
from oracles._tanh import cross_entropy, logits, pulled


def fitted(theta, rate, gradients, eps=1e-8):
    adam = Adam(len(theta), eps=eps)
    for gradient in gradients:
        theta = theta - rate * adam.step(gradient(theta))
    return theta


def run(problem, turns, *, lr=1e-3, sample=5000, digest_epochs=1, digest_batch=256, digest_lr=1e-3, public_epochs=5, public_batch=128,
        client_optimizer="adam", everyone=None, root=None, own=None):
    x, y = problem.public
    eps = float(client_optimizer.partition("eps=")[2] or 1e-8)
    assert client_optimizer.startswith("adam") and len(y) <= min(sample, digest_batch, public_batch)  # all of them in every step

    def private(turn):
        return [lambda v, rows=rows: problem.gradient(v, rows) for rows in turn.batches]

    def shared(v):
        return cross_entropy(problem, v, x, y)

    theta, history = [problem.flat(plan.first_params(problem.task, root, ("rows", i))) for i in range(problem.clients)], []
    theta = [fitted(v, lr, [shared] * public_epochs, eps) for v in theta]
    for turn in everyone(0)[0]:
        theta[turn.client] = fitted(theta[turn.client], lr, private(turn), eps)
    for cohort in turns:
        mean = np.mean([logits(problem, theta[turn.client], x) for turn in cohort], 0)

        def towards(v, mean=mean):
            return pulled(problem, v, x, np.sign(logits(problem, v, x) - mean) / mean.size)

        for turn in cohort:
            theta[turn.client] = fitted(fitted(theta[turn.client], digest_lr, [towards] * digest_epochs), lr, private(turn), eps)
        own.append(np.array(theta))
        history.append(problem.start)
    return history


def phase(**options):
    return 2
