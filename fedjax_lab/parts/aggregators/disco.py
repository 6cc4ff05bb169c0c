"""Weights that count against clients whose labels are far from the target distribution.

Ye, Xu, Wang, Xu, Chen, Wang, "FedDisco: Federated Learning with Discrepancy-Aware Collaboration", ICML 2023.

    (1)  d_k = KL(D_k || T) / sum_j KL(D_j || T)      D_k the label distribution of client k; or ||D_k - T||_2, or 1 - cos(D_k, T)
    (2)  w_k ~ relu(p_k - a d_k + b)                  p_k ~ the weights given; where all are zero, w_k = p_k
    (3)  x = sum_k w_k y_k                            everything over the clients of the round
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lab.registry import part
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Stacked

PAPER = "FedDisco: Federated Learning with Discrepancy-Aware Collaboration"
Metric = Literal["kl", "l2", "cosine"]


@part(kind="aggregator", family="aggregation", paper=PAPER, year=2023)
def disco(a: NonNegative = 0.5, b: NonNegative = 0.1, *, metric: Metric = "kl", target: tuple[float, ...] = ()) -> Stacked:
    """The mean by weights that fall with a client's distance from the target distribution of labels.

    Args:
      a: how much the distance counts.
      b: what every client's weight is raised by.
      metric: the distance; kl is divided by its sum over the round's clients.
      target: the target distribution, a number a class; uniform by default.
    """

    def rule(stack, weight, cohort):
        w = weights(cohort.counts, jnp.asarray(weight), a, b, metric, target)

        def mean(v):
            by = w.reshape(-1, *[1] * (v.ndim - 1))
            return jnp.sum(jnp.where(by > 0, by * v, 0), 0)  # (3)

        return jax.tree.map(mean, stack)

    return Stacked(rule)


def weights(counts: jax.Array, p: jax.Array, a: float, b: float, metric: Metric = "kl", target: tuple[float, ...] = ()) -> jax.Array:
    """[S]: w_k of (2), summing to 1 where anybody was heard.

    Args:
      counts: [S, C] examples per class;  p: [S], what the clients count otherwise, 0 for those who were not heard.

    Raises:
      ValueError: there are no classes, or the target is of other ones.
    """
    classes = counts.shape[1]
    if not classes or len(target) not in (0, classes):
        raise ValueError(f"disco needs labels, and a target of as many entries as classes: there are {classes} classes and {len(target)} entries")
    t = jnp.asarray(target or [1.0] * classes, jnp.float32)
    t, p = t / jnp.sum(t), p / jnp.maximum(jnp.sum(p), 1e-12)
    share = counts / jnp.maximum(jnp.sum(counts, 1, keepdims=True), 1)
    d = jnp.where(p > 0, _distance(share, t, metric), 0)
    if metric == "kl":
        d = d / jnp.where(jnp.sum(d) > 0, jnp.sum(d), 1)  # (1)
    w = jnp.where(p > 0, jax.nn.relu(p - a * d + b), 0)  # (2)
    return jnp.where(jnp.any(w > 0), w / jnp.maximum(jnp.sum(w), 1e-12), p)


def _distance(share: jax.Array, t: jax.Array, metric: Metric) -> jax.Array:
    if metric == "kl":
        return jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1) / jnp.maximum(t, 1e-12)), 0), 1)
    if metric == "l2":
        return jnp.linalg.norm(share - t, axis=1)
    return 1 - share @ t / jnp.maximum(jnp.linalg.norm(share, axis=1) * jnp.linalg.norm(t), 1e-12)
