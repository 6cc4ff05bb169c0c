"""FedLabel: SGD over the labeled rows, then over the others: mean CE(strong, label of the expert) over those it is sure of, plus lam times the
share that agrees times the mean KL(local || global) on the weak version over those where both say the same. KL's slope in the logits of the
local one is p (log p - log q - KL).
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd, shares
from oracles._semi import rows_of, version
from oracles._tanh import cross_entropy, logits, pulled, softmax

SCORES = {"variance": lambda p: ((p - 1 / p.shape[1]) ** 2).mean(1), "entropy": lambda p: (p * np.log(p)).sum(1), "max": lambda p: p.max(1)}


def run(problem, turns, *, lr, threshold=0.95, lam=1.0, adaptive=True, score="variance", weak="", strong="", server_lr=1.0, weighting="examples"):
    x, history = problem.start, []
    for cohort in turns:
        change = 0.0
        for turn, share in zip(cohort, shares(problem, cohort, weighting)):
            labeled, others = rows_of(problem, turn.client)
            w = sgd(problem, x, turn.again(rows=labeled), lr)
            for t, rows in enumerate(turn.again("unlabeled", rows=others)):
                u, g = problem.examples(rows)[0], 0.0
                easy, hard = (version(which, text, u, turn.key, "unlabeled", "steps", t) for which, text in (("weak", weak), ("strong", strong)))
                p, q = softmax(logits(problem, w, easy)), softmax(logits(problem, x, easy))
                best = np.where((SCORES[score](q) > SCORES[score](p))[:, None], q, p)
                sure, agree = best.max(1) >= threshold, p.argmax(1) == q.argmax(1)
                if sure.any():
                    g = g + cross_entropy(problem, w, hard[sure], best[sure].argmax(1))
                if agree.any():
                    p, q = p[agree], q[agree]
                    apart = np.log(p) - np.log(q)
                    slope = p * (apart - (p * apart).sum(1, keepdims=True)) / agree.sum()
                    g = g + lam * (agree.mean() if adaptive else 1.0) * pulled(problem, w, easy[agree], slope)
                w = w - lr * g
            change = change + share * (w - x)
        x = x + server_lr * change
        history.append(x)
    return history
