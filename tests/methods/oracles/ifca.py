"""IFCA: client i takes k_i = argmin_k loss_i(x_k) on its training data, trains from x_(k_i), and x_k becomes the mean over those
who took k, where there are any; the tensors that all models share are averaged over the whole cohort.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import sgd, shares
from oracles._split import marked


def best(problem, models, client):
    return int(np.argmin([problem.loss(x, problem.rows(client)) for x in models]))


def first_models(problem, root, clusters, common):
    """The engine's first, and others drawn beside it, apart from what they share."""
    drawn = [plan.first_params(problem.task, root, ("server", f"model{k}")) for k in range(1, clusters)]
    return np.array([problem.start, *(np.where(common, problem.start, problem.flat(x)) for x in drawn)])


def run(problem, turns, *, lr, clusters=4, shared="", weighting="uniform", root=None, own=None):
    common, history = marked(problem, shared), []
    models = first_models(problem, root, clusters, common)
    for cohort in turns:
        took = np.array([best(problem, models, turn.client) for turn in cohort], int)
        ends = np.array([sgd(problem, models[k], turn.batches, lr) for k, turn in zip(took, cohort)])
        raw, models = shares(problem, cohort, weighting), models.copy()
        for k in np.unique(took):
            models[k] = np.average(ends[took == k], 0, raw[took == k])
        if cohort:
            models = np.where(common, np.average(ends, 0, raw), models)
        own.append([models[best(problem, models, i)] for i in range(problem.clients)])
        history.append(models.ravel())
    return history
