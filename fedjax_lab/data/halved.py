"""Populations whose clients have a half of their examples each, to tell what a model owes to which."""
from __future__ import annotations

import numpy as np

from fedjax_lab.types import Population, Stream


def owned(train: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(rows [M] of the examples that clients own, in the order of the clients, and their owners [M])."""
    offset, size = np.asarray(train.offset), np.asarray(train.size)
    owner = np.repeat(np.arange(len(size)), size)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size) + offset[owner]
    return (at if train.index is None else np.asarray(train.index)[at]), owner


def masks(rng: np.random.Generator, owner: np.ndarray, pairs: int = 0) -> np.ndarray:
    """bool [1 + pairs, M]: random halves of every client's examples, the larger where odd; after the first, each with its complement next."""
    def half():
        order = np.lexsort((rng.random(len(owner)), owner))
        _, first, size = np.unique(owner, return_index=True, return_counts=True)
        rank = np.empty(len(owner), int)
        rank[order] = np.arange(len(owner)) - np.repeat(first, size)
        return rank < (-(-size // 2))[np.searchsorted(np.unique(owner), owner)]

    found = [half()]
    for _ in range(pairs // 2):
        one = half()
        found += [one, ~one]
    return np.stack(found)


def only(population: Population, rows: np.ndarray, owner: np.ndarray, mask: np.ndarray) -> Population:
    """The population with these of the clients' training examples, in arrays as long as for any mask."""
    size = np.bincount(owner[mask], minlength=population.clients).astype(np.int32)
    index = np.concatenate([rows[mask], rows[~mask]]).astype(np.int32)
    counts = np.zeros(population.counts.shape, np.float32)
    if counts.shape[1]:
        np.add.at(counts, (owner[mask], np.asarray(population.train.examples["y"])[rows[mask]]), 1)
    train = Stream(population.train.examples, (np.cumsum(size) - size).astype(np.int32), size, index)
    return population._replace(train=train, counts=counts)


__all__ = ["masks", "only", "owned"]
