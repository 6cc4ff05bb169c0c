"""The only place where randomness is derived.

A run has one root key. `fold_in` by round, then by client, then by purpose gives every stream of randomness, so that no result
depends on the order of a cohort, on chunks, on padding or on the number of devices.
"""
from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp

from fedjax_lab.types import Key

ROUNDS = 24  # of the swap-or-not shuffle; from 12 on, permutations of 2 to 6 elements pass a chi-square test of uniformity


def purpose(key: Key, name: str) -> Key:
    """The key of the purpose `name` ("init", "cohort", "server", ...).

    >>> key = jax.random.key(0)
    >>> bool(purpose(key, "noise") == purpose(key, "noise")), bool(purpose(key, "noise") == purpose(key, "order"))
    (True, False)
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def for_round(root: Key, clock: jax.Array) -> Key:
    """The key of a round."""
    return jax.random.fold_in(purpose(root, "round"), clock)


def for_client(round_key: Key, client: jax.Array) -> Key:
    """The key of one client in one round."""
    return jax.random.fold_in(round_key, client)


@functools.partial(jax.jit, inline=True)  # traced once per shape
def shuffle(key: Key, positions: jax.Array, n: jax.Array | int) -> jax.Array:
    """A random permutation of 0..n-1, evaluated at these positions only.

    The swap-or-not shuffle (Hoang, Morris, Rogaway, CRYPTO 2012) is a bijection of exactly [0, n): its cost follows the number of
    positions, nothing is sorted, and no padded capacity enters. It stands in for both an epoch's order and a cohort drawn
    without replacement.

    Args:
      key: one key is one permutation.
      positions: int32, any shape, each in [0, n); a position outside gives an arbitrary value in [0, n).
      n: int32 scalar, traced or not; 0 is treated as 1.

    Returns:
      int32 of the shape of positions.
    """
    n = jnp.maximum(jnp.asarray(n), 1).astype(jnp.uint32)
    x = jnp.minimum(positions.astype(jnp.uint32), n - 1)
    words = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def swap_or_not(x, word):
        pivot = word % n
        partner = jnp.where(x <= pivot, pivot - x, pivot + n - x)
        swap = _mix(jnp.maximum(x, partner) + word) & 1
        return jnp.where(swap == 1, partner, x), None

    carry = x + 0 * words[0] + 0 * n  # batched, and varying over a mesh, as the result is
    x, _ = jax.lax.scan(swap_or_not, carry, words, unroll=4)  # half unrolled: less to compile, and faster to run
    return x.astype(jnp.int32)


def _mix(h: jax.Array) -> jax.Array:
    """A 32-bit integer hash (lowbias32)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)
