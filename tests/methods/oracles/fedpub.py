"""FED-PUB: a client trains its model theta from theta_bar and masks of the kernels, by Adam with a memory of its own, on the loss of
theta * mask + l1 |mask|_1 + l2 sum over tensors |theta - theta_bar|_2 (not in the first round). The mean features that its masked model
gives for what is drawn once are compared by the cosine: S_kj ~ exp(s cos), and theta_bar_k = sum_j S_kj theta_j. The global model is
the mean by examples. A client's own model is theta_bar * mask.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import Adam


def run(problem, turns, *, lr, sharpness=3.0, l1=1e-3, l2=1e-3, masked=True, legacy=False, client_optimizer="adam", own=None, root=None):
    kernels, n = ("w1", "w2"), problem.clients
    eps = float(client_optimizer.partition("eps=")[2] or 1e-8)
    shape, x = problem.tensors(problem.start), problem.start
    bar, history = [problem.start.copy() for _ in range(n)], []
    mask = [{k: np.ones_like(shape[k]) for k in kernels} for _ in range(n)]
    adams = [(Adam(len(x), eps=eps), {k: Adam(shape[k].shape, eps=eps) for k in kernels}) for _ in range(n)]
    inputs = plan.drawn("normal", root, ("server", "proxy"), (500, shape["w1"].shape[0])).astype(np.float64)

    def effective(theta, m):
        t = problem.tensors(theta)
        return problem.flat({**t, **{k: t[k] * m[k] for k in kernels}})

    def pruned(m):
        return {k: np.where(np.abs(m[k]) < l1, 0, m[k]) for k in kernels}

    for t, cohort in enumerate(turns):
        thetas, hs = [], []
        for turn in cohort:
            i = turn.client
            theta, m = bar[i].copy(), mask[i]
            for rows in turn.batches:
                g = problem.tensors(problem.gradient(effective(theta, m), rows))
                here, back = problem.tensors(theta), problem.tensors(bar[i])
                dm = {k: g[k] * here[k] + l1 * (not legacy) * np.sign(m[k]) for k in kernels}
                d = {k: g[k] * m.get(k, 1) for k in g}
                if t and not legacy:
                    away = {k: here[k] - back[k] for k in d}
                    d = {k: v + l2 * away[k] / max(np.linalg.norm(away[k]), 1e-30) for k, v in d.items()}
                theta = theta - lr * adams[i][0].step(problem.flat(d))
                if masked:
                    m = {k: m[k] - lr * adams[i][1][k].step(dm[k]) for k in kernels}
            mask[i] = m
            thetas.append(theta)
            p = problem.tensors(effective(theta, pruned(m)))
            hs.append(np.tanh(inputs @ p["w1"] + p["b1"]).mean(0))
        unit = np.array(hs) / np.linalg.norm(hs, axis=1, keepdims=True)
        S = np.exp(sharpness * unit @ unit.T)
        S = S / S.sum(1, keepdims=True)
        for turn, row in zip(cohort, S):
            bar[turn.client] = row @ np.array(thetas)
        sizes = np.array([problem.size[turn.client] for turn in cohort])
        x = sizes / sizes.sum() @ np.array(thetas)
        history.append(x)
        own.append([effective(bar[i], pruned(mask[i])) for i in range(n)])
    return history
