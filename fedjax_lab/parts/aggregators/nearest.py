"""Robust rules that trust uploads with near neighbors; all distances of a round are one matrix [S, S] (parts/gram.py).

n uploads are there, of which f may be attackers'; D_ij is the squared distance between two.

    Krum        s_i = sum of the n - f - 2 smallest D_ij, j not i;  the upload with the least s_i       (Blanchard et al., NeurIPS 2017)
    Multi-Krum  the mean of the m uploads with the least s_i
    Bulyan      n - 2f times Krum on what is left, each choice set aside; of these, coordinate by coordinate, the mean of the
                n - 4f values nearest to their median                                                  (El Mhamdi et al., ICML 2018)
    NNM         y_i = mean of the n - f uploads nearest to upload i, itself among them; then another rule  (Allouah et al., AISTATS 2023)

Departs: where n is too small for f, rules go on with the most that n allows, which `tolerates` says.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab.parts.gram import combined, distances, ranks, shares, there
from fedjax_lab.registry import part
from fedjax_lab.spec import Range
from fedjax_lab.types import Stacked

Half = Annotated[float, Range(0, 0.5, open="high")]
Number = Annotated[int, Range(0)]
Weights = Literal["honored", "equal"]
KRUM = {"paper": "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", "year": 2017}


def assumed(beta: float, f: int, most: Callable) -> Callable:
    """(n) -> how many attackers a rule reckons with: f, or else the share beta of n, rounded up, but no more than most(n)."""

    def count(n):
        if isinstance(n, int):
            return max(min(f or math.ceil(beta * n - 1e-6), most(n)), 0)
        return jnp.maximum(jnp.minimum(f or jnp.ceil(beta * n - 1e-6).astype(jnp.int32), most(n)), 0)

    return count


def ranked(d: jax.Array, left: jax.Array, neighbors: jax.Array) -> jax.Array:
    """[S] places by the sum of the smallest distances to others that are left; who is not left comes last.

    Two that are each other's only neighbor have the same sum: the one that is nearer to all comes first, whatever their order.
    """
    s = d.shape[0]
    others = left[:, None] & left[None] & ~jnp.eye(s, dtype=bool)
    near = jnp.sort(jnp.where(others, d, jnp.inf), 1)
    total = jnp.sum(jnp.where((jnp.arange(s) < neighbors) & jnp.isfinite(near), near, 0), 1)
    everyone = jnp.sum(jnp.where(others, d, 0), 1)
    return jnp.argsort(jnp.lexsort((everyone, jnp.where(left, total, jnp.inf))))


@part(kind="aggregator", family="trust", **KRUM)
def krum(beta: Half = 0.2, *, f: Number = 0) -> Stacked:
    """The one upload that has the nearest neighbors.

    Clients count alike, and the result is one client's: no weight enters it.

    Args:
      beta: share of those heard that may be attackers, rounded up.
      f: number that may be attackers instead, where it is not 0.
    """
    return _multi("krum", beta, f, 1, "equal")


@part(kind="aggregator", family="trust", **KRUM)
def multi_krum(beta: Half = 0.2, *, f: Number = 0, m: Number = 0, weights: Weights = "honored") -> Stacked:
    """The mean of the uploads that have the nearest neighbors.

    Args:
      beta: share of those heard that may be attackers, rounded up.
      f: number that may be attackers instead, where it is not 0.
      m: how many uploads are averaged; n - f - 2 where it is 0.
      weights: of the uploads that are averaged, honored or all equal; choosing counts clients.
    """
    return _multi("multi-krum", beta, f, m, weights)


def _multi(name: str, beta: float, f: int, m: int, weights: Weights) -> Stacked:
    count = assumed(beta, f, lambda n: (n - 3) // 2)

    def rule(stack, weight, cohort):
        stack, present, w = there(name, stack, weight, weights)
        n = jnp.sum(present)
        neighbors = jnp.maximum(n - count(n) - 2, 1)
        chosen = ranked(distances(stack, present), present, neighbors) < (m or neighbors)
        return combined(shares(jnp.where(chosen, w, 0)), stack)

    return Stacked(rule, tolerates=count)


@part(kind="aggregator", family="trust", paper="The Hidden Vulnerability of Distributed Learning in Byzantium", year=2018)
def bulyan(beta: Half = 0.2, *, f: Number = 0, weights: Weights = "honored") -> Stacked:
    """Repeated Krum, then the values nearest to the median of every coordinate.

    Args:
      beta: share of those heard that may be attackers, rounded up.
      f: number that may be attackers instead, where it is not 0.
      weights: of the values that are averaged, honored or all equal; choosing counts clients.
    """
    count = assumed(beta, f, lambda n: (n - 3) // 4)

    def rule(stack, weight, cohort):
        stack, present, w = there("bulyan", stack, weight, weights)
        n = jnp.sum(present)
        bad = count(n)
        d = distances(stack, present)

        def choose(turn, left):
            best = jnp.argmin(ranked(d, left, jnp.maximum(jnp.sum(left) - bad - 2, 1)))
            return jnp.where(turn < n - 2 * bad, left.at[best].set(False), left)

        chosen = present & ~jax.lax.fori_loop(0, present.shape[0], choose, present)
        return jax.tree.map(lambda v: _around_median(v, chosen, n - 4 * bad, w), stack)

    return Stacked(rule, tolerates=count)


def _around_median(v: jax.Array, chosen: jax.Array, keep: jax.Array, w: jax.Array) -> jax.Array:
    """The weighted mean of the `keep` values of every coordinate nearest to the median of those chosen, v [S, ...]."""
    aside = (-1, *[1] * (v.ndim - 1))
    size = jnp.sum(chosen)
    ascending = jnp.sort(jnp.where(chosen.reshape(aside), v, jnp.inf), 0)
    median = (ascending[jnp.maximum(size - 1, 0) // 2] + ascending[size // 2]) / 2
    off = jnp.where(chosen.reshape(aside), jnp.abs(v - median), jnp.inf)
    near = chosen.reshape(aside) & (jnp.argsort(jnp.argsort(off, 0), 0) < keep)
    by = jnp.where(near, w.reshape(aside), 0)
    return jnp.sum(jnp.where(near, by * v, 0), 0) / jnp.maximum(jnp.sum(by, 0), jnp.finfo(jnp.float32).tiny)


@part(kind="aggregator", family="trust", paper="Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", year=2023)
def nnm(beta: Half = 0.2, *, f: Number = 0) -> Stacked:
    """Every upload becomes the mean of its nearest neighbors, before another rule: nnm:0.2+median; alone, before the mean.

    Clients count alike in a mean of neighbors; the weights are the next rule's.

    Args:
      beta: share of those heard that may be attackers, rounded up.
      f: number that may be attackers instead, where it is not 0.
    """
    count = assumed(beta, f, lambda n: (n - 1) // 2)

    def mix(stack, weight, cohort):
        stack, present, w = there("nnm", stack, weight)
        n = jnp.sum(present)
        keep = jnp.maximum(n - count(n), 1)
        near = present[:, None] & present[None] & (ranks(jnp.where(jnp.eye(present.shape[0], dtype=bool), -1, distances(stack, present))) < keep)
        return combined(near / keep, stack), w

    def alone(stack, weight, cohort):
        mixed, w = mix(stack, weight, cohort)
        return combined(shares(w), mixed)

    return Stacked(alone, mix, count)


__all__ = ["assumed", "bulyan", "krum", "multi_krum", "nnm", "ranked"]
