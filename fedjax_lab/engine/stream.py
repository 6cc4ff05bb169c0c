"""Populations and client tables that live off the device: what a segment touches travels, the rest stays where it is.

Who takes part does not depend on what is learned, so the draws of a segment are rolled out before it. Their clients' examples are
packed into one slab of fixed size, and the clients' rows into another; the program finds a client by its place among the sorted ids of
the slab, and computes with it what it would have computed with the whole population, bit for bit. While a segment trains, the examples
of the next are packed.
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.engine import processes
from fedjax_lab.types import Facts, Key, Participation, Population, State, Stream, Tree

NOBODY = np.iinfo(np.int32).max
BLOCK = 1 << 20  # entries of a long array that are looked at together


class Bounds(NamedTuple):
    """How large slabs are: clients, and examples of the two streams."""

    clients: int
    train: int
    test: int


class Share(NamedTuple):
    """What one segment touches of a population.

    facts: id int32 [U], ascending, NOBODY beyond the clients there are; their size [U] and counts [U, C];
    population: these clients' examples in this order, or None where the whole population is on the devices.
    """

    facts: Facts
    population: Population | None


def most(size: Any) -> int:
    """The largest size, block by block."""
    return max((int(block.max()) for block in blocks(size)), default=0)


def largest(size: Any, count: int) -> int:
    """The sum of the `count` largest sizes, block by block."""
    totals = np.zeros(1, np.int64)
    for block in blocks(size):
        found = np.bincount(block)
        totals, found = (np.pad(x, (0, max(len(totals), len(found)) - len(x))) for x in (totals, found))
        totals = totals + found
    above = np.minimum(np.cumsum(totals[::-1]), count)
    taken = np.diff(above, prepend=0)
    return int(np.sum(taken * np.arange(len(totals))[::-1]))


def blocks(array: Any):
    """The array in pieces of BLOCK entries."""
    for start in range(0, len(array), BLOCK):
        yield np.asarray(array[start : start + BLOCK])


def roll(participation: Participation, length: int) -> Callable:
    """(sampler state, root key, clock, rounds) -> (sampler state after, ids [length, S] with NOBODY where nobody starts)."""

    def one(i, carry):
        state, found, key, clock = carry
        draw = participation.draw(keys.purpose(keys.for_round(key, clock + i), "cohort"), state, clock + i)
        return draw.state, found.at[i].set(jnp.where(draw.mask, draw.ids, NOBODY)), key, clock

    def several(state, key, clock, rounds):
        blank = jnp.full((length, participation.slots), NOBODY, jnp.int32)
        return jax.lax.fori_loop(0, rounds, one, (state, blank, key, clock))[:2]

    return jax.jit(several)


def pack(population: Population, found: np.ndarray, room: Bounds, examples: bool) -> Share:
    """The share of these clients, found [K] in any order and multiplicity, with their examples where wanted."""
    there = np.unique(found[found != NOBODY])
    facts = Facts(*(_padded(x, room.clients) for x in (there, population.train.size[there], population.counts[there])))
    facts = facts._replace(id=np.where(np.arange(room.clients) < len(there), facts.id, NOBODY).astype(np.int32))
    if not examples:
        return Share(facts, None)
    rows, offset, size = _rows(population.train, there, room.clients)
    train = Stream({name: _padded(array[rows], room.train) for name, array in population.train.examples.items()}, offset, size)
    rows, offset, size = _rows(population.test, there, room.clients)
    test = Stream({}, offset, size, _padded(rows.astype(np.int32), room.test))
    return Share(facts, Population(train, test, facts.counts))


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros((length, *x.shape[1:]), x.dtype)
    out[: len(x)] = x
    return out


def _rows(stream: Stream, there: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of `examples` that these clients own, one client after the other, with offset and size [room]."""
    own = np.zeros(room, np.int32)
    own[: len(there)] = stream.size[there]
    start = np.cumsum(own, dtype=np.int64) - own
    first = np.asarray(stream.offset[there], np.int64)
    at = np.repeat(first - start[: len(there)], own[: len(there)]) + np.arange(own.sum())
    rows = at if stream.index is None else np.asarray(stream.index[at], np.int64)
    return rows, start.astype(np.int32), own


class Feeder:
    """Packs shares, one segment ahead.

    Args:
      population: on the host, in arrays or anything that is indexed like them.
      participation: who is drawn.
      also: clients that every share holds.
      length: the most rounds in a segment.
      examples: whether the clients' examples travel.
      put: moves a share to the devices.
    """

    def __init__(self, population: Population, participation: Participation, also: Any, length: int, examples: bool, put: Callable):
        self._population, self._also, self._examples, self._put = population, np.asarray(also, np.int32), examples, put
        clients = min(length * participation.slots + len(self._also), population.clients)
        self.room = Bounds(clients, *(max(1, largest(side.size, clients)) if examples else 0 for side in (population.train, population.test)))
        nobody = pack(population, np.zeros(0, np.int32), self.room, examples)
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nobody)
        self._roll = roll(participation, length)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="share")
        self._ahead: tuple[tuple, Future, Tree] | None = None

    def take(self, state: State, clock: int, rounds: int) -> Share:
        """The share of these rounds, on the devices; the one of as many rounds after them is begun."""
        key = bytes(np.asarray(jax.random.key_data(state.key)))
        if self._ahead is not None and self._ahead[0] == (key, clock, rounds):
            _, share, after = self._ahead
        else:
            share, after = self._begin(state.participation, state.key, clock, rounds)
        share = share.result()
        if rounds:
            self._ahead = ((key, clock + rounds, rounds), *self._begin(after, state.key, clock + rounds, rounds))
        return share

    def _begin(self, sampler: Tree, key: Key, clock: int, rounds: int) -> tuple[Future, Tree]:
        after, found = self._roll(sampler, key, jnp.int32(clock), jnp.int32(rounds))
        return self._thread.submit(self._prepare, np.asarray(found)), after

    def _prepare(self, found: np.ndarray) -> Share:
        return self._put(pack(self._population, np.concatenate([found.reshape(-1), self._also]), self.room, self._examples))


class Rows(NamedTuple):
    """A client table off the devices, as part of State: arrays [N, ...] on the host, and whose row was ever written, bool [N]."""

    rows: Tree
    known: np.ndarray


class Table:
    """Reads and writes the rows of a segment's clients. A row that was never written is a first one.

    Args:
      clients: N.
      like: shapes of the rows of some clients [n, ...].
      where: "host", or "disk" for files that have no name and end with the process.

    Raises:
      ValueError: a row holds random keys, which only devices hold.
    """

    def __init__(self, clients: int, like: Tree, where: str):
        if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in jax.tree.leaves(like)):
            raise ValueError(f"client_state={where}: the method's rows hold random keys; choose device")
        self._like, self._clients, self._where = like, clients, where

    def new(self) -> Rows:
        """The table before the first round."""
        rows = jax.tree.map(lambda x: self._blank((self._clients, *x.shape[1:]), x.dtype), self._like)
        return Rows(rows, self._blank((self._clients,), bool))

    def _blank(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if self._where == "disk" and np.prod(shape):
            return np.memmap(tempfile.TemporaryFile(), np.dtype(dtype), "w+", shape=shape)
        return np.zeros(shape, dtype)

    def read(self, table: Rows, share: Share, fresh: Tree) -> Tree:
        """The rows [U, ...] of a share, `fresh` where none was written."""
        ids = np.minimum(np.asarray(share.facts.id), self._clients - 1)
        known = table.known[ids]
        return jax.tree.map(lambda t, new: np.where(known.reshape(-1, *[1] * (t.ndim - 1)), t[ids], new), table.rows, processes.whole(fresh))

    def write(self, table: Rows, share: Share, rows: Tree) -> Rows:
        """The table with a segment's rows written into it, in place."""
        ids = np.asarray(share.facts.id)
        there = ids != NOBODY
        for into, new in zip(jax.tree.leaves(table.rows), jax.tree.leaves(processes.whole(rows)), strict=True):
            into[ids[there]] = new[there]
        table.known[ids[there]] = True
        return table


def facts_of(population: Population) -> Facts:
    """Of all clients."""
    return Facts(np.arange(population.clients, dtype=np.int32), *(np.asarray(x) for x in (population.train.size, population.counts)))


__all__ = ["NOBODY", "Feeder", "Rows", "Share", "Table", "facts_of", "largest", "most", "pack", "roll"]
