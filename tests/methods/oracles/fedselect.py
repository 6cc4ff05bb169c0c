"""FedSelect: each client trains in turns, a pass of its personal entries, a pass of the shared ones; the server takes, entry by entry, the
plain mean over those who share it. In every `period`-th round but the first, of the shared entries of a matrix the share p that moved
furthest since the last such round becomes personal once this round's mean has gone out to them, unless more than `bound` are personal.
"""
from __future__ import annotations

import numpy as np
from oracles._common import momentum_of


def run(problem, turns, *, lr, p=0.25, bound=0.8, period=3, clip=float("inf"), client_optimizer="sgd", own=None):
    x, n, rho = problem.start, problem.clients, momentum_of(client_optimizer)
    shapes = {k: a.shape for k, a in problem.tensors(x).items()}
    theta, before = [x] * n, [x] * n
    old, mask, history = np.zeros((n, len(x)), bool), np.zeros((n, len(x)), bool), []
    for clock, cohort in enumerate(turns):
        total, count = np.zeros_like(x), np.zeros_like(x)
        for turn in cohort:
            i = turn.client
            y, m = np.where(old[i], theta[i], x), np.zeros_like(x)
            passes = [turn.again("personal"), turn.batches]
            per = -(-problem.size[i] // len(turn.batches[0])) if len(turn.batches) > 1 else 1
            for first in range(0, len(turn.batches), per):
                for moving, batches in zip((mask[i], ~mask[i]), passes):
                    for rows in batches[first : first + per]:
                        g = problem.gradient(y, rows)
                        m = rho * m + g * min(1.0, clip / np.linalg.norm(g))
                        y = y - lr * np.where(moving, m, 0)
            total += np.where(mask[i], 0, y)
            count += ~mask[i]
            theta[i], old[i] = y, mask[i]
            if clock % period == 0 and clock > 0:
                marks, moved, next_mask = problem.tensors(mask[i]), problem.tensors(np.abs(y - before[i])), {}
                for k, shape in shapes.items():
                    mine = marks[k].ravel().astype(bool)
                    if len(shape) > 1 and mine.mean() <= bound:
                        order = np.argsort(np.where(mine, np.inf, -moved[k].ravel()), kind="stable")
                        mine = mine.copy()
                        mine[order[: int(np.round(p * (~marks[k].ravel().astype(bool)).sum()))]] = True
                    next_mask[k] = mine.reshape(shape)
                mask[i], before[i] = problem.flat(next_mask), y
        x = np.where(count > 0, total / np.maximum(count, 1), x)
        own.append(np.array(theta))
        history.append(x)
    return history
