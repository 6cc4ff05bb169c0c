"""Secrets in shares, and keys agreed on in pairs, over the integers modulo the prime 65521.

A secret is a row of elements. Its shares are values of a random polynomial of degree t - 1 at the places 1 .. n: any t of them give the
value at 0 back, and fewer tell nothing. Shamir, "How to Share a Secret", CACM 1979. A pair agrees as Diffie and Hellman do: the public
element is g^a, and g^(ab) is known to who has a or b. The field is small, so that 32-bit integers hold its products: four elements
make the 64 bits of a simulated key, where a deployment has 256.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Key

PRIME, ROOT = 65521, 17  # 17 generates all 65520 units
ELEMENTS = 4


def drawn(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Random elements, uint32."""
    return jax.random.bits(key, shape, jnp.uint32) % PRIME


def power(base: jax.Array | int, exponent: jax.Array | int) -> jax.Array:
    """base^exponent, element by element; exponents below 2^16.

    >>> int(power(17, 65520)), int(power(2, 16))
    (1, 15)
    """
    base, exponent = jnp.broadcast_arrays(jnp.asarray(base, jnp.uint32), jnp.asarray(exponent, jnp.uint32))
    result = jnp.ones_like(base)
    for bit in range(16):
        result = jnp.where((exponent >> bit) & 1 == 1, result * base % PRIME, result)
        base = base * base % PRIME
    return result


def public(secret: jax.Array) -> jax.Array:
    """What the others may know of a secret."""
    return power(ROOT, secret)


def agreed(secret: jax.Array, other: jax.Array) -> jax.Array:
    """What the owner of a secret has in common with the owner of the public element `other`.

    >>> bool(agreed(5, public(9)) == agreed(9, public(5)))
    True
    """
    return power(other, secret)


def shares(key: Key, secret: jax.Array, n: int, threshold: jax.Array | int) -> jax.Array:
    """Shares [n, ...] of a secret of any shape, of which `threshold` (1 .. n, traced or not) are needed."""
    place = jnp.arange(1, n + 1, dtype=jnp.uint32).reshape(-1, *[1] * secret.ndim)
    coefficients = drawn(key, (max(n - 1, 1), *secret.shape))
    kept = jnp.arange(1, coefficients.shape[0] + 1) < threshold
    coefficients = jnp.where(kept.reshape(-1, *[1] * secret.ndim), coefficients, 0)

    def horner(value, coefficient):
        return (value + coefficient) % PRIME * place % PRIME, None

    value, _ = jax.lax.scan(horner, jnp.zeros((n, *secret.shape), jnp.uint32), coefficients[::-1])
    return (value + secret) % PRIME


def joined(held: jax.Array, chosen: jax.Array) -> jax.Array:
    """The secret [...] of the chosen (bool [n]) among shares [n, ...]; anything where too few are chosen."""
    place = jnp.arange(1, chosen.shape[0] + 1, dtype=jnp.uint32)

    def times(products, other):
        x, counts = other
        top = jnp.where(counts & (place != x), x, 1)
        bottom = jnp.where(counts & (place != x), (x + PRIME - place) % PRIME, 1)
        return (products[0] * top % PRIME, products[1] * bottom % PRIME), None

    ones = jnp.ones_like(place)
    (top, bottom), _ = jax.lax.scan(times, (ones, ones), (place, chosen))
    weight = jnp.where(chosen, top * power(bottom, PRIME - 2) % PRIME, 0).reshape(-1, *[1] * (held.ndim - 1))
    return jnp.sum(weight * held % PRIME, 0, dtype=jnp.uint32) % PRIME


__all__ = ["ELEMENTS", "PRIME", "ROOT", "agreed", "drawn", "joined", "power", "public", "shares"]
