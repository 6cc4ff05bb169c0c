"""Method -> Method: secure aggregation. The server gets the sum of a cohort's uploads, and of any single one noise.

    (1)  x_i = round(L clip(r_i Delta_i / C, -1, 1)),  L = 2^(q-1) - 1,  r_i = min(w_i / W, 1);  and round(L r_i) likewise
    (2)  y_i = x_i + masks of i  mod 2^b, which vanish in the sum over all who were drawn; see masks.py for those who are lost
    (3)  sum r_i Delta_i = C / L sum x_i,  as the rule of the field wants it
    (4)  no sum of n such integers wraps:  n 2^q <= 2^b

All fields of an upload are masked, and their weights. Rounding is random and unbiased; behind the clipping of differential privacy it is
towards zero, so that no norm grows. Where fewer than a threshold are heard, nothing was, and the round's metric "aborted" is 1.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017. Simulated: all secrets of a round come from one seed, in the state and in the messages, so that the server's function can
also play the clients who open the masks. Keys and shares are counted in bytes for `cohort` clients.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, rules
from fedjax_lab.parts.privacy import masks
from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.spec import Positive, Range, Share
from fedjax_lab.types import Cohort, Key, Method, Stacked, Streaming, Tree

SHARES = "shares"
KEY = 256  # bits of a public key, and of a share
WORD = 32


class Secured(NamedTuple):
    """server: the method's own state;  seed: uint32 [2], of all secrets;  heaviest: float32 scalar, W."""

    server: Tree
    seed: jax.Array
    heaviest: jax.Array


class Same(dict):
    """A mapping with one value under every name, and none to go through."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value

    def get(self, name: str, default: Any = None) -> Any:
        return self.value

    def __contains__(self, name: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True


@part(kind="privacy", family="trust", paper="Practical Secure Aggregation for Privacy-Preserving Machine Learning", year=2017)
def secagg(method: Method, cohort: int, *, bits: Annotated[int, Range(2, 24)] = 16, clip: Positive = 1.0, weight: Positive | None = None,
           modulus: Annotated[int, Range(2, WORD)] | None = None, threshold: Share = 0.5, neighbors: Annotated[int, Range(2)] | None = None) -> Method:
    """Uploads behind masks that vanish in their sum; clients may drop out, and the server learns the sum only.

    Args:
      bits: q, of an entry of one upload.
      clip: C, the most that an entry of a change may be; what is more is cut.
      weight: W, the most that a client's weight may be; by default the examples of the largest client, or 1 after differential privacy.
      modulus: b, bits of an entry on its way; by default the fewest that cannot overflow.
      threshold: share of those drawn that must be heard, or nothing is.
      neighbors: how many others a client shares masks with, an even number; by default all.
    """
    if len(method.exchanges) != 1:
        raise ValueError(f"'{method.info.name}' has several exchanges in a round, and 'secagg' masks one")
    if neighbors and neighbors % 2:
        raise ValueError(f"option 'neighbors' of 'secagg': {neighbors} is odd; choose an even number")
    (phase,) = method.exchanges
    other = [*phase.up, *(f for f, rule in phase.aggregate.items() if not sums(rule))]
    if other:
        raise ValueError(f"'{method.info.name}' has a wire or a rule for {other[0]} of the upload that is no sum; 'secagg' shows the server sums only")
    peers, levels = min(neighbors or cohort, cohort - 1), 2 ** (bits - 1) - 1

    def secrets(seed, clock):
        return jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), clock)

    def broadcast(state, client, clock):
        told = codes.Packed(state.seed, peers * KEY), codes.Packed(state.heaviest, 0)  # two words: a public key and a share of every peer
        return {**phase.broadcast(state.server, client, clock), SHARES: told}

    def local(key, message, client, data):
        seed, heaviest = (told.values for told in message[SHARES])
        result = phase.local(key, {f: v for f, v in message.items() if f != SHARES}, client, data)
        weights = result.weight if isinstance(result.weight, Mapping) else dict.fromkeys(result.upload, result.weight)
        plain = {f: weighted(f, value, jnp.minimum(weights[f] / heaviest, 1), clip) for f, value in result.upload.items()}
        plain = rounded(keys.purpose(key, SHARES), plain, levels, method.release is not None)  # (1)
        ring = masks.circle(secrets(seed, data.clock), data.roster >= 0, neighbors)
        sent = masks.masked(ring, jnp.argmax(data.roster == data.id), plain)  # (2)
        wide = width(modulus, bits, data.roster.shape[0])
        upload = jax.tree.map(lambda y: codes.Packed(y & (2**wide - 1), wide), sent)
        shares = codes.Packed(jnp.zeros((), jnp.uint32), (1 + 2 * peers) * KEY)  # a public key; per peer a share sent and one told
        return result._replace(upload={**upload, SHARES: shares}, weight=1.0)

    def serve(key, state, aggregate, who):
        ring, wide = masks.circle(secrets(state.seed, who.clock), who.roster >= 0, neighbors), width(modulus, bits, who.roster.shape[0])
        needed, enough = quorum(threshold, who)
        total = {f: codes.opened(v) for f, v in aggregate.items() if f != SHARES}
        total = masks.unmasked(keys.purpose(key, SHARES), ring, who.mask, needed, total)
        fields = {}
        for f, sum_of in total.items():
            value, share = jax.tree.map(lambda x: jnp.where(enough, signed(x, wide) / levels, 0), sum_of)
            mean = jax.tree.map(lambda x, share=share: clip * x / jnp.where(share > 0, share, 1), value)
            fields[f] = once(phase.aggregate.get(f, rules.mean()), mean, share * state.heaviest)  # (3)
        return state._replace(server=phase.serve(key, state.server, fields, only(who, enough)))

    def start(key, params, census):
        heaviest = weight or (1.0 if method.release is not None else np.max(census.size))
        seed = jax.random.bits(keys.purpose(key, "secagg"), (2,), jnp.uint32)
        return Secured(method.init_server(key, params, census), seed, jnp.float32(heaviest))

    own = None if method.personal is None else lambda key, state, client, data: method.personal(key, state.server, client, data)
    release = method.release and method.release._replace(noised=(*method.release.noised, SHARES))

    def watch(who):
        broken = jnp.any(who.roster >= 0) & ~quorum(threshold, who)[1]
        return {**method.watch(who), "aborted": broken.astype(jnp.int32)}

    packed = rules.identity()._replace(bits=codes.bits_of)
    changed = phase._replace(local=local, broadcast=broadcast, serve=serve, up=Same(packed), down={**phase.down, SHARES: packed},
                             aggregate=Same(modular()))
    return method.rephased([changed], init_server=start, deploy=lambda state: method.deploy(state.server), personal=own, release=release, watch=watch)


def quorum(threshold: float, who: Cohort) -> tuple[jax.Array, jax.Array]:
    """(how many of those who started must be heard, int32; whether so many were)."""
    needed = jnp.maximum(jnp.ceil(threshold * jnp.sum(who.roster >= 0)), 1).astype(jnp.int32)
    return needed, jnp.sum(who.mask) >= needed


def weighted(field: str, value: Tree, share: jax.Array, clip: float) -> tuple[Tree, jax.Array]:
    """(r Delta / C in [-1, 1], r) of a field.

    Raises:
      ValueError: it holds integers, or its weight is no scalar.
    """
    integer = [x.dtype for x in jax.tree.leaves(value) if not jnp.issubdtype(x.dtype, jnp.inexact)]
    if integer or jnp.ndim(share):
        raise ValueError(f"'secagg': field '{field}' of the upload {f'holds {integer[0]}' if integer else 'has a weight for each entry'}; "
                         "it sums real numbers of one weight")
    return jax.tree.map(lambda x: jnp.clip(share * x / clip, -1, 1), value), share


def rounded(key: Key, value: Tree, levels: int, towards_zero: bool) -> Tree:
    """Numbers in [-1, 1] as whole ones in [-levels, levels], uint32 modulo 2^32; at random without bias, or towards zero."""
    vector, form = codes.ravel(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), value))
    x = levels * vector
    x = jnp.trunc(x) if towards_zero else jnp.floor(x + jax.random.uniform(key, x.shape))
    return jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x.astype(jnp.int32), jnp.uint32), codes.unravel(x, form))


def signed(x: jax.Array, wide: int) -> jax.Array:
    """Integers modulo 2^wide as those nearest to zero, int32."""
    return jax.lax.bitcast_convert_type(x << (WORD - wide), jnp.int32) >> (WORD - wide)


def width(modulus: int | None, bits: int, clients: int) -> int:
    """Bits of an entry on its way, such that the sum of so many clients' entries cannot wrap (4).

    Raises:
      ValueError: the modulus asked for is too small, or none of 32 bits is large enough.
    """
    needed = bits + (clients - 1).bit_length()
    if needed > WORD:
        raise ValueError(f"option 'bits' of 'secagg': sums of {clients} clients with {bits} bits overflow {WORD}; choose at most {bits - needed + WORD}")
    if modulus is not None and modulus < needed:
        raise ValueError(f"option 'modulus' of 'secagg': {modulus} bits overflow, sums of {clients} clients with {bits} bits need {needed}; "
                         f"choose {needed}..{WORD}, or fewer bits")
    return modulus or needed


def modular() -> Streaming:
    """The sum of what was heard modulo 2^32."""
    def add(acc, value, weight):
        return jax.tree.map(lambda a, v: a + jnp.where(weight == 0, 0, v), acc, value)

    return Streaming(lambda value, weight: jax.tree.map(jnp.zeros_like, value), add, lambda a, b: jax.tree.map(jnp.add, a, b), lambda acc: acc)


def once(rule: Streaming, mean: Tree, weight: jax.Array) -> Tree:
    """What the rule makes of a single upload."""
    return rule.finish(rule.add(rule.zero(mean, weight), mean, weight))


def sums(rule: Streaming | Stacked) -> bool:
    """Whether a rule needs to know no more than the weighted sum and the sum of weights."""
    if isinstance(rule, Stacked):
        return False
    with jax.ensure_compile_time_eval():
        one, other = jnp.array([5.0, -3.0, 0.5]), jnp.array([-1.0, 8.0, 0.25])
        w, v = jnp.float32(1), jnp.float32(3)
        both = rule.finish(rule.add(rule.add(rule.zero(one, w), one, w), other, v))
        return bool(jnp.allclose(both, once(rule, (w * one + v * other) / (w + v), w + v)))


def only(who: Cohort, enough: jax.Array) -> Cohort:
    """The cohort, where enough of it were heard; else one of which nobody was."""
    none = {name: jnp.where(enough, getattr(who, name), 0) for name in ("size", "steps", "counts")}
    return who._replace(mask=who.mask & enough, **none)


__all__ = ["Same", "Secured", "modular", "once", "quorum", "rounded", "secagg", "signed", "sums", "width"]
