"""HyperFL: client i has an embedding e_i and a head c_i, and makes its tensors below the head from psi: h = relu(e W + b), tensor = h K + k.
A pass or more of SGD with momentum 0.5 for c_i alone, then SGD in psi and e_i through the generator, the slopes of each cut at a length.
The server takes the mean psi. What is evaluated as global is made of an embedding that the server drew, under the first head.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import clipped, momentum_of, shares


def generated(psi, e):
    h = np.maximum(e @ psi["W"] + psi["b"], 0)
    return {k: (h @ K + psi["k", k]) for (kind, k), K in ((name, v) for name, v in psi.items() if name[0] == "K")}


def run(problem, turns, *, lr, embedding=64, hidden=128, head_epochs=1, head_lr=0.1, limit=50.0, head="head", weighting="examples",
        client_optimizer="momentum:0.5", own=None, root=None):
    first, rho = problem.tensors(problem.start), momentum_of(client_optimizer)
    below, above = ([k for k in first if (head in k) == side] for side in (False, True))
    psi = {"W": plan.drawn("normal", root, ("server", "generator", "first"), (embedding, hidden)) / np.sqrt(embedding), "b": np.zeros(hidden)}
    for k in below:
        a = first[k]
        psi["K", k] = plan.drawn("normal", root, ("server", "generator", k), (hidden, a.size)) * np.sqrt((a**2).mean()) * np.sqrt(2 / hidden)
        psi["k", k] = np.zeros(a.size)
    psi = {k: v.astype(np.float64) for k, v in psi.items()}
    e = [plan.drawn("normal", root, ("rows", i, "embedding"), (embedding,)).astype(np.float64) for i in range(problem.clients)]
    server_e = plan.drawn("normal", root, ("server", "embedding"), (embedding,)).astype(np.float64)
    heads, history = [{k: first[k] for k in above} for _ in e], []

    def whole(psi, e, top):
        made = generated(psi, e)
        return problem.flat({**{k: made[k].reshape(first[k].shape) for k in below}, **top})

    for cohort in turns:
        ends = []
        for turn in cohort:
            i = turn.client
            c, m = heads[i], {k: 0.0 for k in above}
            for rows in turn.again("head", epochs=head_epochs, local_steps=0) if head_epochs else ():
                g = problem.tensors(problem.gradient(whole(psi, e[i], c), rows))
                m = {k: 0.5 * m[k] + g[k] for k in above}
                c = {k: c[k] - head_lr * m[k] for k in above}
            heads[i], y, f = c, psi, e[i]
            m, n = {k: 0.0 for k in psi}, 0.0
            for rows in turn.batches:
                g = problem.tensors(problem.gradient(whole(y, f, c), rows))
                z = f @ y["W"] + y["b"]
                h = np.maximum(z, 0)
                dh = sum(y["K", k] @ g[k].ravel() for k in below) * (z > 0)
                slope = {"W": np.outer(f, dh), "b": dh}
                slope |= {("K", k): np.outer(h, g[k].ravel()) for k in below} | {("k", k): g[k].ravel() for k in below}
                by = min(1.0, limit / np.sqrt(sum((v**2).sum() for v in slope.values())))
                m = {k: rho * m[k] + by * slope[k] for k in slope}
                n = rho * n + clipped(y["W"] @ dh, limit)
                y, f = {k: y[k] - lr * m[k] for k in y}, f - lr * n
            e[i] = f
            ends.append(y)
        p = shares(problem, cohort, weighting)
        psi = {k: sum(a * y[k] for a, y in zip(p, ends)) for k in psi} if cohort else psi
        history.append(whole(psi, server_e, {k: first[k] for k in above}))
        own.append(np.array([whole(psi, f, c) for f, c in zip(e, heads)]))
    return history
