"""One exchange of vertical learning: untrained encoders' H_k = f_k(x_k) of the aligned examples go up, the server's linear model answers with
the gradient of each example's own cross entropy, k-means puts its rows into as many clusters as there are classes, and with the clusters for
labels, and FixMatch on what it alone has, every party trains its encoder under a new linear head that starts from zero. Its new H_k go up,
and the server trains on them with the labels. After the first round nothing moves. With half precision what is sent is rounded.
"""
from __future__ import annotations

import itertools

import numpy as np
import plan
from oracles._semi import version
from oracles._tanh import cross_entropy, logits, softmax
from oracles.splitnn import backward


def phase(**options) -> int:
    return 1


def run(problem, turns, *, lr, top=None, threshold=0.95, weight=1.0, ratio=1, weak="", strong="", cluster_steps=50, top_epochs=100,
        precision="float32", client_optimizer="momentum:0.9", root=None):
    labels, parties, classes = problem.population.public["y"], problem.clients, 3
    count, decay = len(labels), float(client_optimizer.partition(":")[2] or 0)
    batch_size = min(count, max(len(turn.batches[0]) for turn in turns[0]))
    thetas = [np.asarray(problem.flat(plan.first_params(problem.task, root, ("server", "parties", k))), np.float64) for k in range(parties)]
    d = problem.features(thetas[0], problem.rows(0)[:1]).shape[1]
    widths = [parties * d, *(top or ()), classes]
    layers = [[np.zeros(b), plan.drawn("normal", root, ("server", "top", i), (a, b)).astype(np.float64) / np.sqrt(a)]
              for i, (a, b) in enumerate(itertools.pairwise(widths))]

    def sent(value):
        return value if precision == "float32" else value.astype(np.float32).astype(precision).astype(np.float64)

    def embedded():
        H = np.zeros((count, parties, d))
        for turn in turns[0]:
            H[:, turn.client] = sent(problem.features(thetas[turn.client], problem.rows(turn.client)[:count]))
        return H.reshape(count, -1)

    H = embedded()
    each = np.concatenate([backward(layers, H[[i]], labels[[i]])[1] for i in range(count)]).reshape(count, parties, d)
    for turn in turns[0]:
        k, rows = turn.client, problem.rows(turn.client)
        own = kmeans(turn.key, sent(each[:, k]), classes, cluster_steps)
        x, others = problem.examples(rows[:count])[0], rows[count:]
        known = turn.again(rows=range(count))
        wide = {"batch_size": ratio * len(turn.batches[0])} if ratio > 1 else {}
        unknown = turn.again("unlabeled", rows=others, count=len(known), **wide)
        y = problem.flat({**problem.tensors(thetas[k]), "w2": np.zeros((d, classes)), "b2": np.zeros(classes)})
        v = np.zeros_like(y)
        for t, at in enumerate(known):
            g, u = cross_entropy(problem, y, x[at], own[at]), problem.examples(unknown[t])[0]
            p = softmax(logits(problem, y, version("weak", weak, u, turn.key, "steps", t)))
            sure = p.max(1) >= threshold
            if sure.any():
                g = g + weight * sure.mean() * cross_entropy(problem, y, version("strong", strong, u, turn.key, "steps", t)[sure], p[sure].argmax(1))
            v = decay * v + g
            y = y - lr * v
        thetas[k] = problem.flat({**problem.tensors(thetas[k]), **{name: problem.tensors(y)[name] for name in ("w1", "b1")}})
    H, speed = embedded(), [[np.zeros_like(x) for x in layer] for layer in layers]
    for epoch in range(top_epochs):
        order = plan.shuffled(root, ("round", 0, "serve1", "order", epoch), count)
        for first in range(0, count, batch_size):
            at = order[first: first + batch_size]
            slopes, _ = backward(layers, H[at], labels[at])
            for layer, v, slope in zip(layers, speed, slopes, strict=True):
                for i in range(2):
                    v[i] = decay * v[i] + slope[i]
                    layer[i] = layer[i] - lr * v[i]
    tensors = [problem.tensors(theta) for theta in thetas]
    encoders = [np.ravel([tensor[name] for tensor in tensors]) for name in sorted(tensors[0])]
    return [np.concatenate([*encoders, *[x.ravel() for layer in layers for x in layer]])] * len(turns)


def kmeans(key, x, clusters, steps):
    """Lloyd's iterations from centers that are rows drawn one after the other, each with the square of its distance to those before."""
    centers, near = np.zeros((0, x.shape[1])), np.full(len(x), float(np.finfo(np.float32).max))
    for c in range(clusters):
        with np.errstate(divide="ignore"):
            at = np.argmax(np.log(near) + plan.drawn("gumbel", key, ("clusters", c), (len(x),)))
        centers = np.vstack([centers, x[at]])
        near = np.minimum(near, ((x - x[at]) ** 2).sum(1))
    for _ in range(steps):
        own = ((x[:, None] - centers) ** 2).sum(2).argmin(1)
        centers = np.array([x[own == c].mean(0) if (own == c).any() else centers[c] for c in range(clusters)])
    return ((x[:, None] - centers) ** 2).sum(2).argmin(1)
