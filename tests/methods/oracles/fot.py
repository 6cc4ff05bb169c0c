"""FOT: the mean of the clients' changes, all alike, loses for every listed matrix W [d, outputs] what lies in the span of a basis U [d, k].

After the last round of a task every client in it sends, for the inputs X [d, n] of every layer in turn of its batches, (X - U U^T X) Omega
with Omega [n, m] drawn, and |X - U U^T X|_F / |X|_F; the server adds the first, averages the second by n to r, and appends as many left
singular vectors of the sum as hold more than (r - (1 - eps)) / r of its energy, one at least. Then eps grows.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import sgd


def run(problem, turns, *, lr, task_rounds=10, eps=0.96, eps_step=0.0, columns=1, noise="uniform", others="averaged", head="head", everyone=None):
    x, history = problem.start, []
    tensors = problem.tensors(x)
    listed = [name for name in ("w1", "w2") if not head or head not in name]
    U = {name: np.zeros((len(tensors[name]), 0)) for name in listed}
    for t, cohort in enumerate(turns):
        change = problem.tensors(np.mean([sgd(problem, x, turn.batches, lr) - x for turn in cohort], 0))
        for name in change:
            if name in U:
                change[name] = change[name] - U[name] @ (U[name].T @ change[name])
            elif others == "frozen" and t >= task_rounds and not (head and head in name):
                change[name] = 0 * change[name]
        x = x + problem.flat(change)
        history.append(x)
        if (t + 1) % task_rounds:
            continue
        late = {turn.client: turn for turn in everyone(1)[t]}
        for name in listed:
            basis, d = U[name], len(U[name])
            m, Y, ratios, sizes = columns * d, 0.0, [], []
            for turn in (late[here.client] for here in cohort):
                rest = whole = 0.0
                for number, rows in enumerate(turn.again(epochs=1, local_steps=0)):
                    X = (problem.examples(rows)[0] if name == "w1" else problem.features(x, rows)).T
                    R = X - basis @ basis.T @ X
                    kind = ("uniform", np.float32, -1.0, 1.0) if noise == "uniform" else ("normal",)
                    Omega = plan.drawn(kind[0], turn.key, ("steps", number, name), (4, m), *kind[1:])[: len(rows)]
                    Y, rest, whole = Y + R @ Omega, rest + (R**2).sum(), whole + (X**2).sum()
                ratios.append(np.sqrt(rest / whole))
                sizes.append(problem.size[turn.client])
            r = np.average(ratios, weights=sizes)
            V, s, _ = np.linalg.svd(Y)
            need, held = (r - (1 - eps)) / r, np.cumsum(s**2) / (s**2).sum()
            k = min(max(1, int((held <= need).sum()) + 1), d - basis.shape[1])
            U[name] = np.linalg.qr(np.concatenate([basis, V[:, :k]], 1))[0]
        eps += eps_step
    return history
