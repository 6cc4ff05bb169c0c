"""Clients with labels for a part of their rows, and noisy versions of a batch by a text "jitter:sigma"."""
from __future__ import annotations

import numpy as np
import plan


def rows_of(problem, client):
    """(the rows with a label, the others), ascending."""
    rows = problem.rows(client)
    known = np.asarray(problem.population.train.examples["labeled"])[rows]
    return rows[known], rows[~known]


def version(which, text, x, key, *path):
    """The inputs of the batch of a step, whose key is at the end of this path, with the noise of its weak or strong version, each place of the batch with its own."""
    name, _, sigma = text.partition(":")
    assert name == "jitter"
    if not len(x) or not float(sigma):
        return x
    noise = [plan.drawn("normal", key, (*path, "views", which, place, 0), x.shape[1:]) for place in range(len(x))]
    return x + float(sigma) * np.stack(noise).astype(np.float64)
