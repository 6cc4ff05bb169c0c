"""Coordinate-wise robust rules over the stack of a cohort's uploads.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018.

A slot that is empty, or was given weight zero, is not there; NaN counts as the largest value. The paper's clients count alike, which is
weights=equal; by default the weights that the method gives are honored.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab import rules
from fedjax_lab.registry import part
from fedjax_lab.spec import Range
from fedjax_lab.types import Stacked

PAPER = "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates"
Weights = Literal["honored", "equal"]


def _by_coordinate(combine: Callable[[jax.Array, jax.Array], jax.Array], weights: Weights, tolerates: Callable[[int], int]) -> Stacked:
    """A rule from combine (v [S, ...] ascending, w of the same shape) -> [...]; unheard entries come last with weight 0."""

    def leaf(v, w):
        w = w.reshape(w.shape[:1] + (1,) * (v.ndim - w.ndim) + w.shape[1:])
        w = jnp.broadcast_to((w > 0) if weights == "equal" else w, v.shape).astype(jnp.promote_types(v.dtype, jnp.float32))
        v = jnp.where(w > 0, jnp.where(jnp.isnan(v), jnp.inf, v), jnp.nan)
        order = jnp.argsort(v, axis=0)
        v, w = (jnp.take_along_axis(x, order, 0) for x in (v, w))
        return jnp.where(jnp.any(w > 0, 0), combine(v, w), 0)

    def rule(stack, weight, cohort):
        return jax.tree.map(leaf, stack, rules.spread(weight, stack))

    return Stacked(rule, tolerates=tolerates)


@part(kind="aggregator", family="trust", paper=PAPER, year=2018)
def median(*, weights: Weights = "honored") -> Stacked:
    """The median of every coordinate, of an even number the mean of the two in the middle.

    Args:
      weights: honored gives the weighted median, equal counts every client that was heard alike.
    """

    def combine(v, w):
        reached, half = jnp.cumsum(w, 0), jnp.sum(w, 0) / 2
        at = [jnp.argmax(passed, 0) for passed in (reached >= half, reached > half)]
        low, high = (jnp.take_along_axis(v, i[None], 0)[0] for i in at)
        return jnp.where(low == high, low, low + (high - low) / 2)

    return _by_coordinate(combine, weights, lambda n: max((n - 1) // 2, 0))


@part(kind="aggregator", family="trust", paper=PAPER, year=2018)
def trimmed_mean(beta: Annotated[float, Range(0, 0.5, open="high")] = 0.1, *, f: Annotated[int, Range(0)] = 0, weights: Weights = "honored") -> Stacked:
    """The mean of every coordinate without its largest and smallest values.

    Args:
      beta: share of the heard clients that is dropped at either end, rounded up.
      f: number that is dropped at either end instead, where it is not 0; at least one client always stays.
      weights: of the clients that stay, honored or all equal; dropping counts clients.
    """

    def combine(v, w):
        n = jnp.sum(w > 0, 0)
        b = jnp.minimum(f if f else jnp.ceil(beta * n - 1e-6), (n - 1) // 2)
        rank = jnp.arange(v.shape[0]).reshape(-1, *[1] * (v.ndim - 1))
        kept = jnp.where((rank >= b) & (rank < n - b), w, 0)
        return jnp.sum(jnp.where(kept > 0, kept * v, 0), 0) / jnp.where(n > 0, jnp.sum(kept, 0), 1)

    return _by_coordinate(combine, weights, lambda n: max(min(f or math.ceil(beta * n - 1e-6), (n - 1) // 2), 0))
