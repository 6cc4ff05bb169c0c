"""Populations that live off the devices: what a segment touches travels, the rest stays where it is. See engine.tables for the rows.

Who takes part does not depend on what is learned, so the draws of a segment are rolled out before it. Their clients' examples are
packed into one slab of fixed size, and the clients' rows into another; the program finds a client by its place among the sorted ids of
the slab, and computes with it what it would have computed with the whole population, bit for bit. While a segment trains, the examples
of the next are packed.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lab import keys
from fedjax_lab.engine import mesh as meshes
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
    population: these clients in this order, without examples, or None where the whole population is on the devices;
    examples: {field: [n, ...]}, their training examples.
    """

    facts: Facts
    population: Population | None
    examples: Mapping[str, Any] = {}


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


def pack(population: Population, found: np.ndarray, room: Bounds, examples: bool, part: tuple[int, int] = (0, 1)) -> Share:
    """The share of these clients, found [K] in any order and multiplicity, with their examples where wanted.

    part: (p, P), of the training examples only the p-th of P equal pieces of the slab; no other rows are read.
    """
    there = np.unique(found[found != NOBODY])
    facts = Facts(*(_padded(x, room.clients) for x in (there, population.train.size[there], population.counts[there])))
    facts = facts._replace(id=np.where(np.arange(room.clients) < len(there), facts.id, NOBODY).astype(np.int32))
    if not examples:
        return Share(facts, None)
    rows, offset, size = _rows(population.train, there, room.clients)
    piece = room.train // part[1]
    own = rows[part[0] * piece : (part[0] + 1) * piece]
    taken = {name: _padded(array[own], piece) for name, array in population.train.examples.items()}
    train = Stream({}, offset, size)
    rows, offset, size = _rows(population.test, there, room.clients)
    test = Stream({}, offset, size, _padded(rows.astype(np.int32), room.test))
    return Share(facts, Population(train, test, facts.counts), taken)


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

    In a run of several processes each reads the examples of its own piece of the slab, and the devices send the pieces to each other.

    Args:
      population: on the host, in arrays or anything that is indexed like them.
      participation: who is drawn.
      also: clients that every share holds.
      length: the most rounds in a segment.
      examples: whether the clients' examples travel.
      mesh: of the devices that shares go to.
    """

    def __init__(self, population: Population, participation: Participation, also: Any, length: int, examples: bool, mesh: Mesh):
        self._population, self._also, self._examples, self._mesh = population, np.asarray(also, np.int32), examples, mesh
        clients = min(length * participation.slots + len(self._also), population.clients)
        train, test = (max(1, largest(side.size, clients)) if examples else 0 for side in (population.train, population.test))
        self.room = Bounds(clients, -(-train // mesh.size) * mesh.size, test)
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
        share = share._replace(examples=meshes.joined(share.examples))  # here, since programs in which all processes take part need an order
        if rounds:
            self._ahead = ((key, clock + rounds, rounds), *self._begin(after, state.key, clock + rounds, rounds))
        return share

    def _begin(self, sampler: Tree, key: Key, clock: int, rounds: int) -> tuple[Future, Tree]:
        after, found = self._roll(sampler, key, jnp.int32(clock), jnp.int32(rounds))
        return self._thread.submit(self._prepare, np.asarray(found)), after

    def _prepare(self, found: np.ndarray) -> Share:
        part = (jax.process_index(), jax.process_count())
        share = pack(self._population, np.concatenate([found.reshape(-1), self._also]), self.room, self._examples, part)
        fixed = meshes.place(share._replace(examples={}), meshes.replicated(self._mesh))
        return fixed._replace(examples=meshes.spread(self._mesh, share.examples))


def facts_of(population: Population) -> Facts:
    """Of all clients."""
    return Facts(np.arange(population.clients, dtype=np.int32), *(np.asarray(x) for x in (population.train.size, population.counts)))


__all__ = ["NOBODY", "Feeder", "Share", "facts_of", "largest", "most", "pack", "roll"]
