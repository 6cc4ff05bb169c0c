"""Masks that vanish in a sum modulo 2^32, and what takes away the rest of them when clients drop out.

    (1)  y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij),  j the neighbors of i among those drawn
    (2)  sum of the heard x_i = sum y_i - sum of the heard PRG(b_i) + sum over the lost of their pair masks with the heard

Bonawitz and others, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017. Neighbors are those on both sides of
a random circle, after Bell and others, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020. Places 0 .. S-1 stand
for clients, and all secrets of a round follow from one key.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.parts.privacy import shamir
from fedjax_lab.parts.wires import codes
from fedjax_lab.types import Key, Tree


class Circle(NamedTuple):
    """Who masks with whom in a round.

    drawn: bool [S];  order: int32 [S], places around the circle, the drawn first;  rank: its inverse;  count: int32, how many are drawn.
    alone, paired: uint32 [S, 4], b_i and what s_ij is made from.   neighbors: of each, an even number, None for all others.
    """

    drawn: jax.Array
    order: jax.Array
    rank: jax.Array
    count: jax.Array
    alone: jax.Array
    paired: jax.Array
    neighbors: int | None

    @property
    def steps(self) -> jax.Array:
        """How far around the circle one's neighbors are, int32; 0 first, for oneself."""
        n = len(self.order)
        steps = range(1, n) if self.neighbors is None else [s for k in range(1, self.neighbors // 2 + 1) for s in (k, -k)]
        return jnp.asarray([0, *steps], jnp.int32)

    def turns(self, most: int) -> jax.Array:
        """So many, or none without a client: the compiler does not know, and so does not unroll the loop."""
        return jnp.where(self.count > 0, most, 0)


def circle(key: Key, drawn: jax.Array, neighbors: int | None = None) -> Circle:
    """The circle of a round whose key this is; drawn bool [S] says which places have a client."""
    elements = shamir.drawn(key, (*drawn.shape, 2 * shamir.ELEMENTS + 1))
    order = jnp.argsort(jnp.where(drawn, elements[:, -1], shamir.PRIME)).astype(jnp.int32)
    alone, paired = elements[:, : shamir.ELEMENTS], elements[:, shamir.ELEMENTS : -1]
    return Circle(drawn, order, jnp.argsort(order).astype(jnp.int32), jnp.sum(drawn, dtype=jnp.int32), alone, paired, neighbors)


def stream(secret: jax.Array, like: Tree) -> Tree:
    """PRG: uniform uint32 in the shapes of a tree."""
    key = jax.random.wrap_key_data(jnp.stack([secret[0] << 16 | secret[1], secret[2] << 16 | secret[3]]), impl="threefry2x32")
    vector, form = codes.ravel(like)
    return codes.unravel(jax.random.bits(key, vector.shape, jnp.uint32), form)


def mask(ring: Circle, place: jax.Array, alone: jax.Array, paired: jax.Array, own: jax.Array | bool, among: jax.Array, like: Tree) -> Tree:
    """The masks of the client at a place with secrets `alone` and `paired`: its own, where asked for, and those with its neighbors in
    `among` (bool [S])."""
    public = shamir.public(ring.paired)

    def add(number, total):
        step = ring.steps[number]
        other = ring.order[(ring.rank[place] + step) % jnp.maximum(ring.count, 1)]
        counts = jnp.where(step == 0, own, among[other] & (other != place) & (step < ring.count))
        secret = jnp.where(step == 0, alone, shamir.agreed(paired, public[other]))

        def added(total):
            return jax.tree.map(lambda t, m: t + jnp.where(other >= place, m, -m), total, stream(secret, like))

        return jax.lax.cond(counts, added, lambda total: total, total)

    return jax.lax.fori_loop(0, ring.turns(ring.steps.shape[0]), add, jax.tree.map(jnp.zeros_like, like))


def masked(ring: Circle, place: jax.Array, value: Tree) -> Tree:
    """What the client at a place sends instead of its integers (uint32)."""
    return jax.tree.map(jnp.add, value, mask(ring, place, ring.alone[place], ring.paired[place], True, ring.drawn, value))  # (1)


def unmasked(key: Key, ring: Circle, heard: jax.Array, threshold: jax.Array, total: Tree) -> Tree:
    """The sum of what the heard (bool [S]) had, from the sum of what they sent; noise where they are fewer than the threshold.

    Secrets are put together from the shares of those who are heard: b_i of the heard, the other of the lost. The key draws the shares.
    """
    held = shamir.shares(key, jnp.stack([ring.alone, ring.paired], 1), ring.drawn.shape[0], threshold)
    told, lost = shamir.joined(held, heard), ring.drawn & ~heard

    def correct(place, total):
        rest = mask(ring, place, told[place, 0], told[place, 1], heard[place], heard & lost[place], total)
        return jax.tree.map(lambda t, m: jnp.where(lost[place], t + m, t - m), total, rest)  # (2)

    return jax.lax.fori_loop(0, ring.turns(ring.drawn.shape[0]), correct, total)


__all__ = ["Circle", "circle", "mask", "masked", "stream", "unmasked"]
