"""FedASMU: w <- (1 - alpha) w + alpha y, alpha = mu xi / (1 + mu xi) of age and learned controls; in mid-training y <- (1 - beta) y + beta w_g."""
from __future__ import annotations

import numpy as np
from oracles._late import sent
from plan import drawn

MOVES = (0, 1, -1)


def run(problem, turns, *, lr, lam=1.0, sigma=0.5, iota=0.0, gamma=1.0, upsilon=0.5, mu_a=1.0, mu_b=1.0, control_lr=1e-2, slots=9, slot_lr=0.1,
        discount=0.9, epsilon=0.1, again):
    models, policy = [problem.start], np.zeros(slots)
    upload, merge = ({i: np.array(c) for i in range(problem.clients)} for c in ((lam, sigma, iota), (gamma, upsilon)))
    table, place = {i: np.zeros((slots, 3)) for i in range(problem.clients)}, {}
    for n, (cohort, later) in enumerate(zip(turns, again, strict=True)):
        w, steps, hints, kept = models[-1], [], np.zeros(slots), []
        for turn, second in zip(cohort, later, strict=True):
            i, y = turn.client, sent(models, turn)
            move = int(table[i][place[i]].argmax()) if i in place else 0
            if drawn("bernoulli", turn.key, ("slots", "explore"), epsilon):
                move = int(drawn("randint", turn.key, ("slots", "move"), (), 0, 3))
            p = np.exp(policy - policy.max()) / np.exp(policy - policy.max()).sum()
            first = int(drawn("categorical", turn.key, ("slots", "slot"), policy.astype(np.float32)))
            slot = int(np.clip(place[i] + MOVES[move], 0, slots - 1)) if i in place else first
            ask, base, reward = (slot + 1) * len(turn.batches) // (slots + 1), n - turn.staleness, 0.0
            newest = int(turn.latest[ask])
            for t, rows in enumerate(turn.batches):
                if t == ask and newest > base:
                    g, age, (c, u) = newest + 1.0, newest - base + 1.0, merge[i]
                    phi = c / np.sqrt(g) * (1 - u / np.sqrt(age))
                    beta = mu_b * phi / (1 + mu_b * phi)
                    old, y = y, (1 - beta) * y + beta * models[newest]
                    reward = problem.loss(old, rows) - problem.loss(y, rows)
                    slope = problem.gradient(y, rows) @ (models[newest] - old) * mu_b / (1 + mu_b * phi) ** 2 / np.sqrt(g)
                    merge[i] = merge[i] - control_lr * slope * np.array([1 - u / np.sqrt(age), -c / np.sqrt(age)])
                    merge[i] = np.array([max(merge[i][0], 0), min(max(merge[i][1], 0), 1)])
                y = y - lr * problem.gradient(y, rows)
            if i in place:
                target = reward + discount * table[i][slot].max()
                table[i][place[i], move] += slot_lr * (target - table[i][place[i], move])
            else:
                hints += reward * (np.eye(slots)[slot] - p)
            place[i] = slot
            t, age, (a, s, c) = n + 1.0, turn.staleness + 1.0, upload[i]
            xi = a / (np.sqrt(t) * age**s) + c
            alpha = mu_a * xi / (1 + mu_a * xi)
            steps.append((1 - alpha) * w + alpha * y - w)
            slopes = np.array([1, -a * np.log(age), np.sqrt(t) * age**s]) / (np.sqrt(t) * age**s)
            kept.append((i, y, second, mu_a / (1 + mu_a * xi) ** 2 * slopes))
        models.append(w + np.mean(steps, 0) if steps else w)
        policy = policy + slot_lr * hints
        for i, y, second, slopes in kept:
            h = problem.gradient(models[-1], second.batches[0] if second.batches else problem.rows(i)) @ (y - w)
            upload[i] = np.maximum(upload[i] - control_lr * h * slopes, 0)
    return models[1:]
