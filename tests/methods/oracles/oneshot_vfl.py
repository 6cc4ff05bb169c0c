"""One exchange of vertical learning: untrained encoders' H_k = f_k(x_k) of the aligned examples go up, the server's linear model answers with
the gradient of each example's own cross entropy, k-means puts its rows into as many clusters as there are classes, and with the clusters for
labels, and FixMatch on what it alone has, every party trains its encoder under a new linear head that starts from zero. Its new H_k go up,
and the server trains on them with the labels. With half precision what is sent is rounded.

So many rounds after that are few-shot rounds: a party sends the features of what it alone has; for each of them the server guesses every other
party's as a mean of those of the aligned examples, weighted by how near the party's own are (softmax of the dot product over sqrt d), and
answers with the label of those it is sure of; these the party learns too, under a second head, from their weak versions. Then nothing moves.
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
        precision="float32", shots=0, client_optimizer="momentum:0.9", root=None, of_phase=None):
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

    def embedded(round):
        H = np.zeros((count, parties, d))
        for turn in round:
            H[:, turn.client] = sent(problem.features(thetas[turn.client], problem.rows(turn.client)[:count]))
        return H.reshape(count, -1)

    def trained(turn, own, labels=None):
        """A party's new encoder; labels of what it alone has, -1 for none, in a few-shot round."""
        k, rows = turn.client, problem.rows(turn.client)
        x, others = problem.examples(rows[:count])[0], rows[count:]
        known = turn.again(rows=range(count))
        wide = {"batch_size": ratio * len(turn.batches[0])} if ratio > 1 else {}
        unknown = turn.again("unlabeled", rows=others, count=len(known), **wide)
        heads = [{"w2": np.zeros((d, classes)), "b2": np.zeros(classes)} for _ in range(1 if labels is None else 2)]
        encoder = problem.tensors(thetas[k])
        speed = [np.zeros_like(problem.flat({**encoder, **head})) for head in heads]

        def whole(head):
            return problem.flat({**encoder, **head})

        def moved(slopes):
            """All that is shared moves by the sum of the slopes, a head by its own."""
            nonlocal encoder
            shared = sum(slopes)
            for i, slope in enumerate(slopes):
                parts, common = problem.tensors(slope), problem.tensors(shared)
                speed[i] = decay * speed[i] + problem.flat({name: (parts if name in heads[i] else common)[name] for name in parts})
                after = problem.tensors(whole(heads[i]) - lr * speed[i])
                heads[i] = {name: after[name] for name in heads[i]}
            encoder = {**encoder, **{name: after[name] for name in ("w1", "b1")}}

        for t, at in enumerate(known):
            y, u = whole(heads[0]), problem.examples(unknown[t])[0]
            g, near = cross_entropy(problem, y, x[at], own[at]), version("weak", weak, u, turn.key, "steps", t)
            p = softmax(logits(problem, y, near))
            sure = p.max(1) >= threshold
            if sure.any():
                g = g + weight * sure.mean() * cross_entropy(problem, y, version("strong", strong, u, turn.key, "steps", t)[sure], p[sure].argmax(1))
            slopes = [g]
            if labels is not None:
                told = labels[np.searchsorted(others, unknown[t])]
                z = whole(heads[1])
                slopes.append(cross_entropy(problem, z, near[told >= 0], told[told >= 0]) if (told >= 0).any() else np.zeros_like(z))
            moved(slopes)
        return problem.flat(encoder)

    def taught(H, path):
        """The server's layers after its epochs, from fresh momentum."""
        speed = [[np.zeros_like(x) for x in layer] for layer in layers]
        for epoch in range(top_epochs):
            order = plan.shuffled(root, (*path, "order", epoch), count)
            for first in range(0, count, batch_size):
                at = order[first: first + batch_size]
                slopes, _ = backward(layers, H[at], labels[at])
                for layer, v, slope in zip(layers, speed, slopes, strict=True):
                    for i in range(2):
                        v[i] = decay * v[i] + slope[i]
                        layer[i] = layer[i] - lr * v[i]

    def guessed(H, k):
        """The server's labels of what party k alone has, -1 where it is not sure."""
        rows, H = problem.rows(k)[count:], H.reshape(count, parties, d)
        found = np.full(len(rows), -1)
        for u, q in enumerate(sent(problem.features(thetas[k], rows)) if len(rows) else ()):
            near = softmax((H[:, k] @ q / np.sqrt(d))[None])[0]
            h = np.concatenate([q if j == k else near @ H[:, j] for j in range(parties)])
            for i, (bias, kernel) in enumerate(layers):
                h = (np.maximum(h, 0) if i else h) @ kernel + bias
            p = softmax(h[None])[0]
            found[u] = p.argmax() if p.max() >= threshold else -1
        return found

    def flat():
        tensors = [problem.tensors(theta) for theta in thetas]
        encoders = [np.ravel([tensor[name] for tensor in tensors]) for name in sorted(tensors[0])]
        return np.concatenate([*encoders, *[x.ravel() for layer in layers for x in layer]])

    H = embedded(turns[0])
    each = np.concatenate([backward(layers, H[[i]], labels[[i]])[1] for i in range(count)]).reshape(count, parties, d)
    names = {turn.client: kmeans(turn.key, sent(each[:, turn.client]), classes, cluster_steps) for turn in turns[0]}
    for turn in turns[0]:
        thetas[turn.client] = trained(turn, names[turn.client])
    H = embedded(turns[0])
    taught(H, ("round", 0, "serve1"))
    states = [flat()]
    for t, again in enumerate(of_phase(phase=3)[1:], 1):
        if t <= shots:
            told = {turn.client: guessed(H, turn.client) for turn in again}
            for turn in again:
                thetas[turn.client] = trained(turn, names.get(turn.client, np.zeros(count, int)), told[turn.client])
            H = embedded(again)
            taught(H, ("round", t, "serve3"))
        states.append(flat())
    return states


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
