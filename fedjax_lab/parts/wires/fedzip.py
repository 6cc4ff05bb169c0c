"""Prune, cluster, encode.

Malekijoo, Fadaeieslam, Malekijou, Homayounfar, Alizadeh-Shabdiz, Rawassizadeh, "FEDZIP: A Compression Framework for Communication-Efficient
Federated Learning", 2021.

    (1)  of every tensor of two axes or more the share z of the entries of largest magnitude is kept, the rest becomes zero
    (2)  tensor by tensor k-means with three centers: from linspace(min, max, 3), `passes` steps of Lloyd's, a center of nothing stays
    (3)  every entry becomes its center; three numbers of 32 bits and the labels are sent, the labels in the shortest of three codes

The codes are those of parts/wires/entropy.py; the centers go in the order of their labels, the commonest first. survivors=true clusters
what was kept alone, in two, from the means of its negative and positive entries, and the third center is zero: where few entries are large,
(2) leaves nearly all in the middle cluster, and little is sent.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.parts.wires import codes, entropy
from fedjax_lab.parts.wires.topk import Kept
from fedjax_lab.registry import part
from fedjax_lab.spec import Count
from fedjax_lab.types import Wire

PAPER = "FEDZIP: A Compression Framework for Communication-Efficient Federated Learning"


class Clusters(NamedTuple):
    """centers [3] and labels [n] of one tensor, 0 the commonest; its shape and dtype."""

    centers: jax.Array
    labels: codes.Packed
    form: codes.Form


def pruned(x: jax.Array, share: float) -> jax.Array:
    """x with zeros but for this share of its entries, the largest; vectors stay."""
    if x.ndim < 2 or share == 1:
        return x
    flat = x.reshape(-1)
    _, largest = jax.lax.top_k(jnp.abs(flat), max(1, round(share * flat.size)))
    return jnp.zeros_like(flat).at[largest].set(flat[largest]).reshape(x.shape)  # (1)


def clustered(x: jax.Array, passes: int, survivors: bool = False) -> tuple[jax.Array, jax.Array]:
    """(centers [3], labels [n]) of the entries x [n], in ascending order of the centers; see (2)."""

    def means(labels, otherwise):
        chosen = labels[:, None] == jnp.arange(3)
        number = jnp.sum(chosen, 0)
        return jnp.where(number > 0, jnp.sum(jnp.where(chosen, x[:, None], 0), 0) / jnp.maximum(number, 1), otherwise)

    def nearest(centers):
        far = jnp.abs(x[:, None] - centers)
        return jnp.where(x == 0, 1, 2 * (far[:, 2] < far[:, 0])) if survivors else jnp.argmin(far, 1)

    evenly = jnp.min(x) + (jnp.max(x) - jnp.min(x)) * jnp.array([0, 0.5, 1], x.dtype)
    start = means(1 + jnp.sign(x).astype(jnp.int32), jnp.zeros(3, x.dtype)) if survivors else evenly
    centers = jax.lax.fori_loop(0, passes, lambda _, centers: means(nearest(centers), centers), start)
    return centers, nearest(centers)


@part(kind="wire", family="communication", paper=PAPER, year=2021, stateful=True)
def fedzip(share: Kept = 0.2, *, passes: Count = 4, survivors: bool = False, memory: bool = False) -> Wire:
    """The largest entries of every tensor, as one of three values each, in the shortest of three codes.

    Args:
      share: of a tensor's entries that is not made zero before the clustering, at least one.
      passes: steps of the clustering.
      survivors: cluster what was kept alone, the middle center being zero; otherwise all entries.
      memory: keep what was not sent and add it to what is sent next (error feedback).
    """

    def one(x):
        centers, labels = clustered(pruned(x, share).reshape(-1), passes, survivors)
        order = jnp.argsort(-jnp.sum(labels[:, None] == jnp.arange(3), 0), stable=True)  # the commonest first
        return Clusters(centers[order], codes.Packed(jnp.argsort(order)[labels].astype(jnp.int8), 2), codes.Form(x.shape))  # (3)

    def encode(key, value, row):
        return [one(x) for x in value], row

    def decode(code):
        return [c.centers[c.labels.values].reshape(c.form.facts) for c in code]

    def bits(code):
        return sum(3 * 32 + entropy.TAG + jnp.min(entropy.sizes(c.labels.values)) for c in code)

    wire = Wire(lambda field: (), encode, decode, bits)
    return codes.on_moving(codes.remembered(wire) if memory else wire)
