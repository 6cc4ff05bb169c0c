"""FedFTG over FedAvg: the mean of the clients' models is tuned by SGD towards the class-weighted mean of their softmaxes on samples of a generator,
which Adam, restarted every round, moves client by client (most steps first): away from agreement of the tuned model with that client's, with
their cross entropy and a diversity. G = relu([z, one-hot] W1 + b1) W2 + b2; flat in the order b1, b2, w1, w2.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import Adam, sgd, shares
from oracles._tanh import logits, pulled, softmax


class Net:
    """The generator with its gradient by hand."""

    def __init__(self, root, noise, classes, width, features):
        path = ("server", "generator")
        w1 = np.sqrt(2 / (noise + classes)) * plan.drawn("normal", root, (*path, "w1"), (noise + classes, width))
        w2 = np.sqrt(1 / width) * plan.drawn("normal", root, (*path, "w2"), (width, features))
        self.at = [np.zeros(width), np.zeros(features), w1.astype(np.float64), w2.astype(np.float64)]

    def hidden(self, inputs):
        return np.maximum(inputs @ self.at[2] + self.at[0], 0)

    def make(self, inputs):
        return self.hidden(inputs) @ self.at[3] + self.at[1]

    def pulled(self, inputs, dx):
        h = self.hidden(inputs)
        dh = dx @ self.at[3].T * (h > 0)
        return np.concatenate([np.ravel(g) for g in (dh.sum(0), dx.sum(0), inputs.T @ dh, h.T @ dx)])

    def move(self, step):
        cuts = np.split(step, np.cumsum([w.size for w in self.at])[:-1])
        self.at = [w + cut.reshape(w.shape) for w, cut in zip(self.at, cuts)]


def into_inputs(problem, v, x, slope):
    """The slope [B, F] in the inputs of what has this slope [B, C] in the logits."""
    p = problem.tensors(v)
    return slope @ p["w2"].T * (1 - np.tanh(x @ p["w1"] + p["b1"]) ** 2) @ p["w1"].T


def run(problem, cohorts, *, lr, base="fedavg", turns=10, generator_steps=1, student_steps=5, fidelity=1.0, diversity=1.0, gap="kl", server_batch=128,
        generator_lr=0.01, server_lr=0.1, decay=0.998, noise=100, width=128, root=None):
    assert base == "fedavg"
    s, history = problem.start, []
    counts = problem.population.counts.astype(np.float64)
    classes, eye = counts.shape[1], np.eye(counts.shape[1])
    net, B = Net(root, noise, classes, width, problem.population.train.examples["x"].shape[1]), server_batch
    for t, cohort in enumerate(cohorts):
        ys = [sgd(problem, s, turn.batches, lr) for turn in cohort]
        s = shares(problem, cohort, "examples") @ np.stack(ys)
        n = counts[[turn.client for turn in cohort]]
        a = n / np.maximum(n.sum(0), 1)
        order = sorted(range(len(cohort)), key=lambda k: (-len(cohort[k].batches), cohort[k].client))
        adam = Adam(sum(w.size for w in net.at))
        for i in range(turns):
            path = ("round", t, "serve0", i)
            z = plan.drawn("normal", root, (*path, "noise"), (B, noise)).astype(np.float64)
            with np.errstate(divide="ignore"):
                y = plan.drawn("categorical", root, (*path, "labels"), np.log(n.sum(0)).astype(np.float32), -1, (B,))
            inputs = np.concatenate([z, eye[y]], 1)
            far = ((z[:, None] - z) ** 2).mean(-1)
            for k in order * generator_steps:
                x = net.make(inputs)
                ours, theirs, w = logits(problem, s, x), logits(problem, ys[k], x), a[k][y][:, None] / B
                p, q = softmax(ours), softmax(theirs)
                gaps = np.log(p) - np.log(q)
                slope = p * (gaps - (p * gaps).sum(1, keepdims=True)) if gap == "kl" else np.sign(ours - theirs) / classes
                dx = into_inputs(problem, s, x, -w * slope) + into_inputs(problem, ys[k], x, fidelity * w * (q - eye[y]))
                apart = np.abs(x[:, None] - x).mean(-1)
                alike = np.exp(-(far * apart).mean())
                pull = (far[..., None] * np.sign(x[:, None] - x)).sum(1) * 2 / B**2 / x.shape[1]
                dx = dx - diversity / len(cohort) * alike * pull
                net.move(-generator_lr * decay**t * adam.step(net.pulled(inputs, dx)))
            x = net.make(inputs)
            target = sum(a[k][y][:, None] * softmax(logits(problem, ys[k], x)) for k in range(len(ys)))
            for _ in range(student_steps):
                s = s - server_lr * decay**t * pulled(problem, s, x, (softmax(logits(problem, s, x)) - target) / B)
        history.append(s)
    return history
