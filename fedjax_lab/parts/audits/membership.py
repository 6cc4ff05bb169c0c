"""Whether an example was trained on, told from the losses of models: membership inference as a number.

    loss-threshold   score(x) = -loss(x)                                   Yeom, Giacomelli, Fredrikson, Jha, CSF 2018
    lira             phi = log p / (1 - p),  p = exp(-loss);  score(x) = log N(phi; in) - log N(phi; out)
                     over shadow models with and without x                 Carlini, Chien, Nasr, Song, Terzis, Tramer, S&P 2022

An example's means are its own, the two variances are those of all examples, as the paper does with few shadow models. The number is the
area under the ROC curve, 0.5 for who tells nothing; how many members are found at few false alarms comes beside it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_lab.registry import part
from fedjax_lab.spec import Count


class Membership(NamedTuple):
    """shadows: how many further models are trained, each on a half of its own.

    score: (losses [M], shadow losses [K, M], inside bool [K, M]) -> [M], larger for members.
    """

    shadows: int
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@part(kind="audit", family="trust", paper="Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", year=2018)
def loss_threshold() -> Membership:
    """Who has a small loss was trained on."""
    return Membership(0, lambda losses, shadow, inside: -losses)


@part(kind="audit", family="trust", paper="Membership Inference Attacks From First Principles", year=2022)
def lira(*, shadows: Count = 8) -> Membership:
    """Likelihood ratio of an example's confidence among models that were, and that were not, trained on it.

    Args:
      shadows: models, an even number, each trained like the one that is attacked, on half of all examples, so that each example is in
        half of them.
    """
    if shadows % 2:
        raise ValueError(f"option 'shadows' of 'lira': {shadows} is odd, and each example is in half of them; choose an even number")

    def score(losses, shadow, inside):
        seen, every = confidence(losses), confidence(shadow)
        total = 0.0
        for sign, which in ((1, inside), (-1, ~inside)):
            mean = np.where(which, every, 0).sum(0) / np.maximum(which.sum(0), 1)
            variance = max(((every - mean)[which] ** 2).mean(), 1e-12)
            total = total - sign * ((seen - mean) ** 2 / variance + np.log(variance)) / 2
        return total

    return Membership(shadows, score)


def confidence(losses: np.ndarray) -> np.ndarray:
    """log p / (1 - p) of p = exp(-loss), in float64."""
    losses = np.maximum(np.asarray(losses, np.float64), 1e-12)
    return -losses - np.log(-np.expm1(-losses))


def roc(score: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false alarms, members found), shares from 0 to 1, at all thresholds; equal scores fall together."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    found, alarms = (np.cumsum(which[order])[last] / max(which.sum(), 1) for which in (member, ~member))
    return np.append(0.0, alarms), np.append(0.0, found)


def numbers(score: np.ndarray, member: np.ndarray) -> dict[str, float]:
    """auc, advantage (the most that members found exceed false alarms), and members found at 1 % and 10 % of false alarms."""
    alarms, found = roc(score, member)
    at = {f"found_at_{percent}_percent": float(found[alarms <= percent / 100].max()) for percent in (1, 10)}
    return {"auc": float(np.trapezoid(found, alarms)), "advantage": float((found - alarms).max()), **at}


__all__ = ["Membership", "confidence", "lira", "loss_threshold", "numbers", "roc"]
