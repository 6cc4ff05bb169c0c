"""TAP and TAPS: the most frequent items of users at several parties, found level by level of a prefix tree under local differential privacy.

"Federated Heavy Hitter Analytics with Local Differential Privacy", SIGMOD 2025.

    (1)  users are split at random over the levels h = 1 .. g, and report the first m h / g bits of their item once, by a frequency oracle
         over the candidates and "other"
    (2)  the first `shared` levels: all parties have the same candidates, and the server sums their counts
    (3)  then every party extends what it kept: the first t >= k prefixes, t the least after which the next is more than the oracle's deviation
         behind, at most cap k
    (4)  prune (TAPS): parties in order of their users.  One adds what is popular among those before it, and with the share `probe` of a
         level's users drops what none before it kept and this probe loses in noise; the others report over what is left
    (5)  the counts that parties have of what they kept at last are summed; the k largest

Reduces to: one prefix tree per party (PEM) with shared=0, prune=false, cap=1, merged at the end.
Departs: the thresholds of (3) and (4) are one deviation of the oracle, reconstructed from a summary of the paper; the counts of (4) are of
all users of a level, the probe's among them.
"""
from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.parts.reports.frequency import Frequency, Name, frequency
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Key


class Found(NamedTuple):
    """items, counts: [k], the largest count first;  reports: int [U], how many each user sent;  bytes_up: of them all;  bytes_down: of the lists
    of candidates that users, parties and the server are told."""

    items: np.ndarray
    counts: np.ndarray
    reports: np.ndarray
    bytes_up: int
    bytes_down: int


class Estimate(NamedTuple):
    """candidates: int [c], ascending;  counts: [c], of all users of a party, or of all parties;  deviation: of a count that is near zero."""

    candidates: np.ndarray
    counts: np.ndarray
    deviation: float

    def first(self, k: int, cap: int) -> Estimate:
        """What (3) keeps."""
        order = np.argsort(-self.counts, kind="stable")
        t = min(k, len(order))
        while t < min(cap * k, len(order)) and self.counts[order[t - 1]] - self.counts[order[t]] <= self.deviation:
            t += 1
        return self.at(np.sort(order[:t]))

    def at(self, where: np.ndarray) -> Estimate:
        """Of some candidates, by their places or a mask."""
        return Estimate(self.candidates[where], self.counts[where], self.deviation)


@part(kind="analytics", family="trust", paper="Federated Heavy Hitter Analytics with Local Differential Privacy", year=2025)
def taps(key: Key, items: np.ndarray, party: np.ndarray, *, k: Count = 10, epsilon: Positive = 2.0, bits: Annotated[int, Range(1, 30)] = 16,
         levels: Count = 8, oracle: Name = "oue", shared: Annotated[int, Range(0)] = 2, cap: Count = 3, prune: bool = True,
         probe: Annotated[float, Range(0, 1, "both")] = 0.2) -> Found:
    """The k items that most users hold, from one report of each user.

    Args:
      k: how many.
      epsilon: of the report.
      bits: m, of an item.
      levels: g, of the prefix tree.
      oracle: krr, oue or olh.
      shared: levels whose candidates all parties share.
      cap: most prefixes that are kept, over k; 1 always keeps k.
      prune: parties in turn learn from those before them (TAPS); else each goes alone (TAP).
      probe: share of a level's users by whom is decided what to drop.
    """
    items, party = np.asarray(items), np.asarray(party)
    if levels > bits or (items.size and (items.min() < 0 or int(items.max()) >> bits)):
        raise ValueError(f"'taps': items must be below 2^bits and levels at most bits; bits={bits}, levels={levels}, the largest item is {items.max(initial=0)}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    names, sizes = np.unique(party, return_counts=True)
    order = np.argsort(-sizes, kind="stable").tolist()
    level = np.empty(len(items), int)
    for name in names:
        level[party == name] = rng.permutation(np.arange((party == name).sum()) % levels)  # (1)
    wide = frequency(oracle, epsilon, cap * k * 2 ** -(-bits // levels) + k + 1)
    asked, told = [], []

    def ask(users: np.ndarray, candidates: np.ndarray, depth: int, whole: int) -> Estimate:
        """What these users' reports say of `whole` users."""
        asked.append(users)
        told.append(len(candidates))
        counts, deviation = _reported(wide, key, users, items[users] >> (bits - depth), candidates)
        return Estimate(candidates, counts * whole / max(len(users), 1), deviation * whole / max(len(users), 1))

    kept = dict.fromkeys(order, np.zeros(1, int))
    for h in range(levels):
        depth = bits * (h + 1) // levels
        candidates = {p: _extended(kept[p], depth - bits * h // levels) for p in order}
        users = {p: rng.permutation(np.flatnonzero((party == names[p]) & (level == h))) for p in order}
        if h < shared:  # (2)
            found = [ask(users[p], candidates[p], depth, sizes[p]) for p in order]
            ends = [_sum(found).first(k, cap)]
            kept = dict.fromkeys(order, ends[0].candidates)
            continue
        ends = []
        for p in order:
            if not (prune and ends):
                found = ask(users[p], candidates[p], depth, sizes[p])
            else:  # (4)
                before, cut = _sum(ends), round(probe * len(users[p]))
                all_of = np.union1d(candidates[p], before.first(k, 1).candidates)
                own = ask(users[p][:cut], all_of, depth, sizes[p])
                left = own.at(np.isin(all_of, before.candidates) | (own.counts > own.deviation))
                found = _pooled(left, ask(users[p][cut:], left.candidates, depth, sizes[p]), cut / max(len(users[p]), 1))
            ends.append(found.first(k, cap))  # (3)
            kept[p] = ends[-1].candidates
    total = _sum(ends)  # (5)
    best = np.argsort(-total.counts, kind="stable")[:k]
    reports = np.bincount(np.concatenate(asked), minlength=len(items))
    size = sum(len(u) * -(-wide.bits(c + 1) // 8) for u, c in zip(asked, told, strict=True))
    return Found(total.candidates[best], total.counts[best], reports, size, sum(4 * len(u) * c for u, c in zip(asked, told, strict=True)))


def _extended(prefixes: np.ndarray, by: int) -> np.ndarray:
    return np.sort((prefixes[:, None] << by | np.arange(1 << by)).ravel())


def _sum(parts: list[Estimate]) -> Estimate:
    """Of several parties together; what one did not keep counts 0 there."""
    candidates = functools.reduce(np.union1d, [e.candidates for e in parts])
    counts = np.zeros(len(candidates))
    for e in parts:
        counts[np.searchsorted(candidates, e.candidates)] += e.counts
    return Estimate(candidates, counts, float(np.sqrt(sum(e.deviation**2 for e in parts))))


def _pooled(one: Estimate, two: Estimate, share: float) -> Estimate:
    """Of two groups of users, the first of which is this share of both."""
    deviation = float(np.hypot(share * one.deviation, (1 - share) * two.deviation))
    return Estimate(one.candidates, share * one.counts + (1 - share) * two.counts, deviation)


def _reported(oracle: Frequency, key: Key, users: np.ndarray, prefix: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, float]:
    """(counts of the candidates, their deviation) from one report of each of these users."""
    place = np.searchsorted(candidates, prefix)
    known = candidates[np.minimum(place, len(candidates) - 1)] == prefix
    room = 1 << max(len(users) - 1, 1).bit_length()  # few shapes to compile for
    own = [np.concatenate([x, np.zeros(room - len(x), int)]) for x in (users, np.where(known, place, len(candidates)))]
    counts, deviation = _counted(oracle, key, *map(jnp.asarray, own), jnp.arange(room) < len(users), jnp.int32(len(candidates) + 1))
    return np.asarray(counts, float)[:len(candidates)], float(deviation)


@functools.partial(jax.jit, static_argnums=0)
def _counted(oracle: Frequency, key: Key, users: jax.Array, value: jax.Array, heard: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    reports = jax.vmap(lambda u, v: oracle.report(keys.for_client(key, u), v, d))(users, value)
    return oracle.counts(reports, heard, d)


def f1(found: np.ndarray, items: np.ndarray, k: int) -> float:
    """The share of the k most frequent items that was found."""
    return len(set(found.tolist()) & set(most(items, k).tolist())) / k


def ncr(found: np.ndarray, items: np.ndarray, k: int) -> float:
    """The normalized cumulative rank: the same where the first item counts k, the last 1."""
    return sum(k - rank for rank, item in enumerate(most(items, k).tolist()) if item in set(found.tolist())) / (k * (k + 1) / 2)


def most(items: np.ndarray, k: int) -> np.ndarray:
    """The k most frequent items."""
    values, counts = np.unique(items, return_counts=True)
    return values[np.argsort(-counts, kind="stable")[:k]]


__all__ = ["Estimate", "Found", "f1", "most", "ncr", "taps"]
