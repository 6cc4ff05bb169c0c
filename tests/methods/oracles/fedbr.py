"""FedBR: U are pseudo-samples, as many as a batch has rows, each the mean of a few examples of one client. Per step with batch X:
e1 = D(phi(U)), e2 = D(phi_global(U)), e3 = D(phi(X)), s the cosine by rows,
r = mean log[e^{tau1 s(e1, e2)} / (e^{tau1 s(e1, e2)} + e^{tau2 s(e1, e3)})];
D <- D - lr gamma dr/dD; then, with the new D, phi and h descend CE(X) + lam CE(h(phi(U)), q) - mu r. phi, h, D are averaged.

q is uniform. As a mixture U becomes (U + X) / 2 and q (q + onehot) / 2. D has three layers of width 2 F, with ReLUs between. Of a
batch with fewer rows than U, the other rows of U count in CE alone, as they are.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import shares
from oracles._tanh import head_slope, low, low_slope
from oracles.moon import cosine


def phase(**options) -> int:
    """Which exchange of a round trains: the first gathers U, the second tells it."""
    return 2


def projector(root, features):
    """The layers (w, b) at the start."""
    widths = [(features, 2 * features), (2 * features,) * 2, (2 * features,) * 2]
    return [(plan.drawn("normal", root, ("server", "projector", n), (a, b)) * np.sqrt(2 / a), np.zeros(b)) for n, (a, b) in enumerate(widths)]


def pseudo(problem, root, gathered, rows, mixed):
    items = []
    for j, owner in enumerate(plan.drawn("randint", root, ("server", "owners"), (rows,), 0, problem.clients)):
        positions = plan.drawn("randint", gathered[owner].key, (j,), (mixed,), 0, problem.size[owner])
        items.append(problem.examples(problem.rows(owner)[positions])[0].mean(0))
    return np.array(items)


def projected(D, a):
    """The inputs of all layers, and the output."""
    inputs = []
    for n, (w, b) in enumerate(D):
        inputs.append(np.maximum(a, 0) if n else a)
        a = inputs[-1] @ w + b
    return inputs, a


def pulled(D, inputs, de):
    """From the slope de in the output: those in the layers, and that in the input."""
    slopes = []
    for (w, _), a in zip(D[::-1], inputs[::-1]):
        slopes.insert(0, (a.T @ de, de.sum(0)))
        de = de @ w.T * ((a > 0) | (a is inputs[0]))
    return slopes, de


def contrast(D, z_u, z_g, z_x, tau1, tau2):
    """The slopes of r in D, z_u and z_x."""
    (i1, e1), (i2, e2), (i3, e3) = (projected(D, z) for z in (z_u, z_g, z_x))
    s_g, s_x = cosine(e1, e2)[0], cosine(e1, e3)[0]
    share = 1 / (1 + np.exp(tau1 * s_g - tau2 * s_x))[:, None] / len(e1)  # of e^{tau2 s(e1, e3)} in the sum
    up, down = tau1 * share, -tau2 * share
    one, du = pulled(D, i1, up * cosine(e1, e2)[1] + down * cosine(e1, e3)[1])
    two, _ = pulled(D, i2, up * cosine(e2, e1)[1])
    three, dx = pulled(D, i3, down * cosine(e3, e1)[1])
    return [tuple(map(sum, zip(*layer))) for layer in zip(one, two, three)], du, dx


def moved(D, a, slopes):
    return [(w + a * dw, b + a * db) for (w, b), (dw, db) in zip(D, slopes)]


def run(problem, turns, *, lr, mu=0.5, lam=1.0, gamma=1.0, tau1=2.0, tau2=2.0, mode="mean", mixed=10, weighting="uniform", everyone=None,
        root=None):
    x, history, onehot = problem.start, [], np.eye(problem.population.counts.shape[1])
    size = max(len(rows) for cohort in turns for turn in cohort for rows in turn.batches)
    D, U = projector(root, len(problem.tensors(x)["b1"])), pseudo(problem, root, everyone(0)[0], size, mixed)
    for cohort in turns:
        change, sent = 0, []
        for turn, p in zip(cohort, shares(problem, cohort, weighting)):
            y, d = x, D
            for rows in turn.batches:
                (inputs, labels), n, u, q = problem.examples(rows), len(rows), U.copy(), np.full((size, len(onehot)), 1 / len(onehot))
                if mode == "mixture":
                    u[:n], q[:n] = (u[:n] + inputs) / 2, (q[:n] + onehot[labels]) / 2
                z_u, z_x = low(problem, y, u), low(problem, y, inputs)
                seen = z_u[:n], low(problem, x, u[:n]), z_x
                d = moved(d, -lr * gamma, contrast(d, *seen, tau1, tau2)[0])
                _, du, dx = contrast(d, *seen, tau1, tau2)
                head, dz_x = head_slope(problem, y, z_x, onehot[labels])
                vague, dz_u = head_slope(problem, y, z_u, q)
                dz_u, dz_x = lam * dz_u, dz_x - mu * dx
                dz_u[:n] -= mu * du
                y = y - lr * (head + lam * vague + low_slope(problem, y, inputs, z_x, dz_x) + low_slope(problem, y, u, z_u, dz_u))
            change = change + p * (y - x)
            sent.append((p, moved(d, -1, D)))
        x = x + change
        for p, step in sent:
            D = moved(D, p, step)
        history.append(x)
    return history
