"""Split learning over parties that hold different columns of the same examples: on one batch of aligned examples each party k gives
H_k = f_k(x_k), the server's network of dense layers with ReLUs between them reads all of them beside each other and knows the labels, the
gradient of the mean cross entropy with respect to H_k goes back, and everybody takes a step; a party that does not take part gives zeros.
With local_steps > 1 a party repeats its step with the gradients it got. All go through the aligned examples in one shuffled order.
"""
from __future__ import annotations

import itertools

import numpy as np
import plan


def run(problem, turns, *, lr, top=(128,), client_optimizer="sgd", root=None):
    parties, labels = problem.clients, problem.population.public["y"]
    count, decay = len(labels), float(client_optimizer.partition(":")[2] or 0)
    batch_size = min(count, len(turns[0][0].batches[0]))
    thetas = [problem.flat(plan.first_params(problem.task, root, ("server", "parties", k))) for k in range(parties)]
    thetas = [np.asarray(theta, np.float64) for theta in thetas]
    d = problem.features(thetas[0], problem.rows(0)[:1]).shape[1]
    widths = [parties * d, *(top or ()), len(problem.tensors(thetas[0])["b2"])]
    layers = [[np.zeros(b), plan.drawn("normal", root, ("server", "top", i), (a, b)) / np.sqrt(a)]
              for i, (a, b) in enumerate(itertools.pairwise(widths))]
    layers = [[np.asarray(x, np.float64) for x in layer] for layer in layers]
    speed = [[np.zeros_like(x) for x in layer] for layer in layers]
    speeds, history = [np.zeros_like(theta) for theta in thetas], []
    for t, cohort in enumerate(turns):
        epoch, turn = divmod(t, -(-count // batch_size))
        at = plan.shuffled(root, ("server", "batches", "order", epoch), count)[turn * batch_size: (turn + 1) * batch_size]
        there = {turn.client: len(turn.batches) for turn in cohort}
        H = np.zeros((len(at), parties, d))
        for k in there:
            H[:, k] = problem.features(thetas[k], problem.rows(k)[at])
        slopes, back = backward(layers, H.reshape(len(at), -1), labels[at])
        for layer, v, slope in zip(layers, speed, slopes):
            for i in range(2):
                v[i] = decay * v[i] + slope[i]
                layer[i] = layer[i] - lr * v[i]
        G = back.reshape(H.shape)
        for k, steps in there.items():
            for _ in range(steps):
                speeds[k] = decay * speeds[k] + problem.pullback(thetas[k], problem.rows(k)[at], G[:, k])
                thetas[k] = thetas[k] - lr * speeds[k]
        tensors = [problem.tensors(theta) for theta in thetas]
        encoders = [np.ravel([tensor[name] for tensor in tensors]) for name in sorted(tensors[0])]
        history.append(np.concatenate([*encoders, *[x.ravel() for layer in layers for x in layer]]))
    return history


def backward(layers, z, y):
    """The gradients of the mean cross entropy with respect to the layers and to the input [B, n]."""
    inputs, slopes = [], []
    for i, (bias, kernel) in enumerate(layers):
        inputs.append(z if i == 0 else np.maximum(z, 0))
        z = inputs[-1] @ kernel + bias
    p = np.exp(z - z.max(1, keepdims=True))
    g = (p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[y]) / len(y)
    for i, (bias, kernel) in reversed(list(enumerate(layers))):
        slopes.insert(0, [g.sum(0), inputs[i].T @ g])
        g = g @ kernel.T
        g = g * (inputs[i] > 0) if i else g
    return slopes, g
