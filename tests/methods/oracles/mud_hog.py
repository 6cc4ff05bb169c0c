"""MUD-HoG: histories of gradients. s_i = mean of a client's last 3 changes, L_i = their sum. From round `start` on, among those heard:

1  sign: cos(s_i, median of s of the unconfirmed) < 0
2  noise: DBSCAN of s (eps times the median distance) without 1 and without those confirmed of 1 or 3; beyond the largest gap of the distances
   to the median of the largest cluster, and in no cluster
3  targeted: the smaller half of 2-means of L of the rest, from the farthest pair
4  confirmed after 2, 2, 4 rounds in a row; of noise pardoned, but unreliable, after 2 rounds without
5  unreliable: of the rest, more than 2 times net below the largest gap of cos(s_i, median of s)
6  x <- x + mean of the changes of who is neither confirmed nor suspected of 2 or 3 now; the unreliable count `keep`
"""
from __future__ import annotations

import numpy as np
from oracles._common import sgd


def cosine(a, b):
    return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)


def clusters(points, reach, least):
    """[n]: the cluster of each point, -1 for none: by growing each from its first core point."""
    n = len(points)
    near = [[j for j in range(n) if np.linalg.norm(points[i] - points[j]) <= reach] for i in range(n)]
    labels = [-1] * n
    for first in range(n):
        if labels[first] != -1 or len(near[first]) < least:
            continue
        queue = [first]
        while queue:
            i = queue.pop()
            if labels[i] == -1:
                labels[i] = first
                if len(near[i]) >= least:
                    queue += near[i]
    return np.array(labels)


def split(values):
    """The middle of the largest gap; NaN where there is none."""
    v = np.sort(values)
    if len(v) < 2:
        return np.nan
    at = np.argmax(np.diff(v))
    return (v[at] + v[at + 1]) / 2


def smaller_half(points):
    """[n] bool: the cluster of 2-means that has fewer points."""
    n = len(points)
    if n < 2:
        return np.zeros(n, bool)
    d = np.linalg.norm(points[:, None] - points[None], axis=2)
    i, j = divmod(int(np.argmax(d)), n)
    centers = points[i], points[j]
    for _ in range(11):
        first = np.linalg.norm(points - centers[0], axis=1) <= np.linalg.norm(points - centers[1], axis=1)
        centers = points[first].mean(0), points[~first].mean(0)
    if first.sum() == (~first).sum():
        return np.zeros(n, bool)
    return first if first.sum() < (~first).sum() else ~first


def run(problem, turns, *, lr, start=3, eps=1.5, min_samples=5, keep=1.0, server_lr=1.0):
    n, x, history = problem.clients, problem.start, []
    changes = [[] for _ in range(n)]
    hits, calm, low = np.zeros((n, 3), int), np.zeros(n, int), np.zeros(n, int)
    kind, unreliable = np.zeros(n, int), np.zeros(n, bool)  # kind: 0, or what a client is confirmed of
    for t, cohort in enumerate(turns):
        heard = [turn.client for turn in cohort]
        for turn in cohort:
            changes[turn.client].append(sgd(problem, x, turn.batches, lr) - x)
        aside = set()
        if t >= start and heard:
            s = {i: np.mean(changes[i][-3:], 0) for i in heard}
            free = [i for i in heard if not kind[i]]
            middle = np.median([s[i] for i in free], 0) if free else np.zeros_like(x)
            signs = [i for i in free if cosine(s[i], middle) < 0]
            looked = [i for i in heard if i not in signs and kind[i] in (0, 2)]
            noisy = []
            if len(looked) > 1:
                points = np.array([s[i] for i in looked])
                pairs = [np.linalg.norm(a - b) for k, a in enumerate(points) for b in points[:k]]
                labels = clusters(points, eps * np.median(pairs), min_samples)
                sizes = [(np.sum(labels == k), -k) for k in set(labels) - {-1}]
                if sizes:
                    center = np.median(points[labels == -max(sizes)[1]], 0)
                    away = np.linalg.norm(points - center, axis=1)
                    noisy = [i for i, d, k in zip(looked, away, labels, strict=True) if k == -1 and d > split(away)]
            rest = [i for i in free if i not in signs and i not in noisy]
            targeted = [i for i, small in zip(rest, smaller_half(np.array([np.sum(changes[i], 0) for i in rest])), strict=True) if small]
            for i in heard:
                for k, found in enumerate((signs, noisy, targeted)):
                    hits[i, k] = hits[i, k] + 1 if i in found else 0
                calm[i] = calm[i] + 1 if kind[i] == 2 and i not in noisy else 0
                if kind[i] == 0:
                    kind[i] = 1 if hits[i, 0] >= 2 else 2 if hits[i, 1] >= 2 else 3 if hits[i, 2] >= 4 else 0
                elif calm[i] >= 2:
                    kind[i], unreliable[i] = 0, True
            if rest:
                middle = np.median([s[i] for i in rest], 0)
                cosines = [cosine(s[i], middle) for i in rest]
                for i, c in zip(rest, cosines, strict=True):
                    low[i] = low[i] + 1 if c < split(cosines) else max(low[i] - 1, 0)
                    unreliable[i] |= low[i] > 2
            aside = {i for i in heard if kind[i]} | set(noisy) | set(targeted)
        count = {i: (keep if unreliable[i] else 1.0) for i in heard if i not in aside}
        if sum(count.values()):
            x = x + server_lr * sum(c * changes[i][-1] for i, c in count.items()) / sum(count.values())
        history.append(x)
    return history
