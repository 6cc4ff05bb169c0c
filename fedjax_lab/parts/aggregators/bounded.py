"""Robust rules that bound what one upload can do, whatever its direction.

    RFA            v <- sum_i b_i g_i / sum_i b_i,  b_i = w_i / max(nu, ||v - g_i||),  from the mean: the geometric median, smoothed
                                                                                    (Pillutla, Kakade, Harchaoui, IEEE TSP 2022)
    centered clip  v <- v + sum_i w_i min(1, tau / ||g_i - v||) (g_i - v)                    (Karimireddy, He, Jaggi, ICML 2021)
    norm clip      sum_i w_i min(1, c / ||g_i||) g_i                                                        (Sun et al., 2019)

with weights w_i that sum to one. Departs: centered clipping starts at the coordinate-wise median of the round, where the paper starts
at the aggregate of the round before, which a rule without memory does not have.
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.parts.aggregators.coordinate import median
from fedjax_lab.parts.gram import combined, distance_to, norms, scaled, shares, there
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Stacked

Weights = Literal["honored", "equal"]


def _middle(values: jax.Array, present: jax.Array) -> jax.Array:
    """The median of the entries [S] that are present, 0 where none is."""
    ascending, n = jnp.sort(jnp.where(present, values, jnp.inf)), jnp.sum(present)
    return jnp.where(n > 0, (ascending[jnp.maximum(n - 1, 0) // 2] + ascending[n // 2]) / 2, 0)


@part(kind="aggregator", family="trust", paper="Robust Aggregation for Federated Learning", year=2022)
def rfa(steps: Count = 8, *, nu: Positive = 1e-6, weights: Weights = "honored") -> Stacked:
    """The geometric median, by smoothed Weiszfeld steps.

    Args:
      steps: from the mean on.
      nu: the least distance that is divided by.
      weights: honored or all equal.
    """

    def rule(stack, weight, cohort):
        stack, _, w = there("rfa", stack, weight, weights)

        def step(_, v):
            return combined(shares(w / jnp.maximum(distance_to(stack, v), nu)), stack)

        return jax.lax.fori_loop(0, steps, step, combined(shares(w), stack))

    return Stacked(rule, tolerates=lambda n: max((n - 1) // 2, 0))


@part(kind="aggregator", family="trust", paper="Learning from History for Byzantine Robust Optimization", year=2021)
def centered_clip(tau: NonNegative = 0.0, *, steps: Count = 3, weights: Weights = "honored") -> Stacked:
    """A center that every upload pulls at with bounded force.

    Args:
      tau: the most that one upload pulls; 0 for the median distance to the center, anew in every step.
      steps: of clipping.
      weights: honored or all equal.
    """

    def rule(stack, weight, cohort):
        stack, present, w = there("centered-clip", stack, weight, weights)
        share = shares(w)

        def step(_, v):
            far = distance_to(stack, v)
            by = share * jnp.minimum(1, (tau or _middle(far, present)) / jnp.maximum(far, jnp.finfo(jnp.float32).tiny))
            return tree.add(v, jax.tree.map(lambda pull, at: pull - jnp.sum(by) * at, combined(by, stack), v))

        return jax.lax.fori_loop(0, steps, step, median(weights="equal").combine(stack, w, cohort))

    return Stacked(rule, tolerates=lambda n: max((n - 1) // 2, 0))


@part(kind="aggregator", family="trust", paper="Can You Really Backdoor Federated Learning?", year=2019)
def norm_clip(c: NonNegative = 0.0, *, weights: Weights = "honored") -> Stacked:
    """The mean of uploads that are cut to a length; also before another rule: norm-clip:1+median.

    Args:
      c: the greatest length; 0 for the median length of the round.
      weights: of the mean, honored or all equal.
    """

    def mix(stack, weight, cohort):
        stack, present, w = there("norm-clip", stack, weight, weights)
        size = norms(stack)
        factor = jnp.minimum(1, (c or _middle(size, present)) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
        return scaled(factor, stack), w

    def rule(stack, weight, cohort):
        cut, w = mix(stack, weight, cohort)
        return combined(shares(w), cut)

    return Stacked(rule, mix)


__all__ = ["centered_clip", "norm_clip", "rfa"]
