"""Attacks of members who know every honest upload of the round, and send one and the same forged change.

    mu, s   mean and standard deviation of the honest uploads, coordinate by coordinate
    n, f    uploads heard, and members among them

ALIE        mu - z s,  z = Phi^-1((n - f - m) / (n - f)),  m = floor(n/2) + 1 - f                        (Baruch et al., NeurIPS 2019)
IPM         -e mu                                                                                       (Xie, Koyejo, Gupta, UAI 2019)
Min-Max     mu + g p with the largest g whose distance to any honest upload stays within the largest one
            between two of them                                                                         (Shejwalkar, Houmansadr, NDSS 2021)
            or, where the rule is known, with the g that moves its aggregate farthest from mu           (ibid., tailored to the rule)
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.parts.gram import distances, norms, products
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Positive, Share
from fedjax_lab.types import Attack, Sight, Tree


def moments(sight: Sight) -> tuple[Tree, Tree]:
    """(mean, standard deviation) of the honest uploads, coordinate by coordinate, leaves [1, ...]; zeros where nobody was honest."""
    count = jnp.maximum(jnp.sum(sight.honest), 1)

    def over(f, stack):
        mask = sight.honest.reshape(-1, *[1] * (stack.ndim - 1))
        return jnp.sum(jnp.where(mask, f(stack), 0), 0, keepdims=True) / count

    mean = jax.tree.map(lambda v: over(lambda x: x, v), sight.stack)
    return mean, jax.tree.map(lambda v, m: jnp.sqrt(over(lambda x: jnp.square(x - m), v)), sight.stack, mean)


@part(kind="attack", family="trust", paper="A Little Is Enough: Circumventing Defenses For Distributed Learning", year=2019)
def alie(share: Share = 0.2, *, z: NonNegative = 0.0) -> Attack:
    """Members stay within the spread of the honest, all on one side of their mean.

    Args:
      share: of the clients that attack.
      z: standard deviations from the mean; 0 for as many as a majority of clients is expected to be beyond.
    """

    def forge(key, sight):
        mean, deviation = moments(sight)
        far = z or quantile(jnp.sum(sight.cohort.mask), jnp.sum(sight.members))
        return jax.tree.map(lambda m, s: m - far * s, mean, deviation)

    return Attack(share, forge=forge)


def quantile(n: jax.Array, f: jax.Array) -> jax.Array:
    """z of ALIE; 0 where members are the majority already.

    >>> round(float(quantile(50, 12)), 4)
    0.336
    """
    needed = jnp.maximum(n // 2 + 1 - f, 0)
    honest = jnp.maximum(n - f, 1)
    return jnp.maximum(jax.scipy.special.ndtri(jnp.clip((n - f - needed) / honest, 1e-6, 1 - 1e-6)), 0)


@part(kind="attack", family="trust", paper="Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", year=2019)
def ipm(share: Share = 0.2, *, scale: Positive = 10.0) -> Attack:
    """Members send the honest mean with the opposite sign.

    Args:
      share: of the clients that attack.
      scale: what it is multiplied by: small ones pass robust rules, large ones turn the mean around.
    """
    return Attack(share, forge=lambda key, sight: tree.scale(-scale, moments(sight)[0]))


@part(kind="attack", family="trust", paper="Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning", year=2021)
def min_max(share: Share = 0.2, *, against: Literal["rule", "distances"] = "rule", direction: Literal["std", "mean", "sign"] = "std",
            most: Positive = 100.0, tries: Count = 16) -> Attack:
    """Members go from the honest mean as far as does most harm.

    Args:
      share: of the clients that attack.
      against: rule searches for what moves the aggregate of the rule in use farthest from the honest mean, distances stays within the
        largest distance of two honest uploads.
      direction: along minus the honest standard deviation, minus the mean, or minus its sign; each scaled to the length of the mean.
      most: the longest way that is tried against a rule, in lengths of the honest mean.
      tries: how many lengths are tried against a rule, in geometric steps.
    """

    def forge(key, sight):
        mean, deviation = moments(sight)
        way = {"std": deviation, "mean": mean, "sign": jax.tree.map(jnp.sign, mean)}[direction]
        length = tree.norm(mean) / jnp.maximum(tree.norm(way), 1e-12)

        def at(g):
            return jax.tree.map(lambda m, p: m - g * length * p, mean, way)

        if against == "distances":
            return at(_within(sight, mean, tree.scale(-length, way)))

        def harm(g):
            sent = jax.tree.map(lambda v, s: jnp.where(sight.members.reshape(-1, *[1] * (v.ndim - 1)), s, v), sight.stack, at(g))
            return tree.norm(jax.tree.map(lambda a, m: a - m[0], sight.rule(sent), mean))

        lengths = jnp.concatenate([jnp.zeros(1), jnp.geomspace(most / 2 ** (tries - 2), most, tries - 1)]) if tries > 1 else jnp.full(1, most)
        return at(lengths[jnp.argmax(jax.lax.map(harm, lengths))])

    return Attack(share, forge=forge)


def _within(sight: Sight, mean: Tree, way: Tree) -> jax.Array:
    """The largest g with ||mean + g way - x_i|| <= max_ij ||x_i - x_j|| for all honest i: the least root of their quadratics in g."""
    limit = jnp.max(jnp.where(sight.honest[:, None] & sight.honest[None], distances(sight.stack, sight.honest), 0))
    off = jax.tree.map(lambda v, m: jnp.where(sight.honest.reshape(-1, *[1] * (v.ndim - 1)), m - v, 0), sight.stack, mean)
    a = jnp.square(tree.norm(way))
    b = products(off, jax.tree.map(lambda w: w[0], way))
    c = jnp.square(norms(off)) - limit
    root = (-b + jnp.sqrt(jnp.maximum(b * b - a * c, 0))) / jnp.maximum(a, 1e-24)
    return jnp.maximum(jnp.min(jnp.where(sight.honest, root, jnp.inf)), 0)


__all__ = ["alie", "ipm", "min_max", "moments", "quantile"]
