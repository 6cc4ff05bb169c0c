"""Vertical partitions: parties that hold different features of the same entities, few of which are aligned.

As a population the parties are its clients, and the labels of the aligned examples are public examples without features: the server's alone.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.data import draw, manifest, owners
from fedjax_lab.data.owners import Partition
from fedjax_lab.data.source import Source
from fedjax_lab.spec import Count, Share
from fedjax_lab.types import Key, Population, Stream


class Vertical(NamedTuple):
    """Who holds which column of which example.

    columns: int32 [P, F], the columns of each party, padded with -1.
    aligned: int32 [A], the examples that all parties hold (each its own columns).
    private: the other examples, each held by one party alone.
    """

    columns: np.ndarray
    aligned: np.ndarray
    private: Partition


def vertical(features: int, examples: int, key: Key, parties: Count = 2, overlap: Share = 1.0, *, shared: int = 0,
             shuffle: bool = True) -> Vertical:
    """Splits features over parties, with limited overlap of examples.

    Args:
      features: number of columns; each belongs to exactly one party, but for the shared ones.
      examples: number of examples.
      parties: how many.
      overlap: share of the examples that is aligned (few in one-shot vertical learning); the rest is dealt evenly, unaligned.
      shared: so many columns are held by every party.
      shuffle: columns at random; in order otherwise (image halves, for flattened or last axes).

    Raises:
      ValueError: a party would have no column of its own.
    """
    if not 0 <= shared <= features - parties:
        raise ValueError(f"{parties} parties and {shared} shared columns are not valid: there are {features} columns, "
                         "and each party needs one of its own")
    generator = draw.rng(key, "vertical")
    order = generator.permutation(features) if shuffle else np.arange(features)
    own = [np.sort(np.concatenate([order[:shared], part])) for part in np.array_split(order[shared:], parties)]
    columns = np.full((parties, max(map(len, own))), -1, np.int32)
    for row, part in zip(columns, own):
        row[: len(part)] = part
    rows = generator.permutation(examples)
    aligned, rest = np.split(rows, [round(overlap * examples)])
    return Vertical(columns, np.sort(aligned).astype(np.int32),
                    owners.packed(rest, draw.apportion(np.ones(parties), len(rest))))


def facts(parts: Vertical) -> dict[str, Any]:
    """The facts of a vertical partition, ready for JSON: parties, features of each, examples of all and of one alone, hash."""
    own = (parts.columns >= 0).sum(1)
    return {"parties": len(own), "features": int(parts.columns.max()) + 1, "columns": own.tolist(), "aligned": len(parts.aligned),
            "private": parts.private.size.tolist(), "sha256_partition": manifest.hashed(parts.columns, parts.aligned, *parts.private[:3])}


def party(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The features [M, F] of one party: its columns in order, zero where it is padded."""
    return np.where(columns >= 0, x[:, columns], 0).astype(x.dtype)


def build(origin: Source, parts: Vertical, partition: str) -> Population:
    """The parties as clients. Arrays stay on the host.

    A party's training examples are its columns "x" [F] of the aligned examples, in an order that all parties share, then of those that it
    alone has; where each party has whole rows of a picture they stay one. Their "y" is -1, NaN where it is real: the server has the labels
    of the aligned ones, as the public examples {"y": [A]}, and nobody those of the others. "x" of a test example is that of all parties,
    [P, F]; test examples belong to no party.

    Args:
      origin: the source;  parts: who holds what of it;  partition: its text, for the manifest.

    Raises:
      ValueError: the source has public examples already.
    """
    if origin.public:
        raise ValueError(f"'{partition}' makes the labels the public examples; leave out what splits off others")
    x, y, shape = origin.train["x"], origin.train["y"], _shape(origin.train["x"].shape[1:], parts.columns)
    rows = [np.concatenate([parts.aligned, parts.private.index[o: o + n]]) for o, n in zip(parts.private.offset, parts.private.size)]
    own = [party(flat(x)[at], columns).reshape(len(at), *shape) for at, columns in zip(rows, parts.columns)]
    size = np.array([len(at) for at in rows], np.int32)
    nobody = np.full((size.sum(), *y.shape[1:]), -1 if np.issubdtype(y.dtype, np.integer) else np.nan, y.dtype)
    train = Stream({"x": np.concatenate(own), "y": nobody}, (np.cumsum(size) - size).astype(np.int32), size)
    seen = [party(flat(origin.test["x"]), columns).reshape(-1, *shape) for columns in parts.columns]
    test = Stream({**origin.test, "x": np.stack(seen, 1)}, np.zeros_like(size), np.zeros_like(size))
    counts = np.zeros((len(size), origin.classes), np.float32)
    known = manifest.facts(train._replace(examples={}), test, counts)
    return Population(train, test, counts, {**origin.manifest, "partition": partition, **known, **facts(parts)}, {"y": y[parts.aligned]})


def flat(x: np.ndarray) -> np.ndarray:
    """[M, ...] to [M, F]."""
    return x.reshape(len(x), -1)


def _shape(whole: tuple[int, ...], columns: np.ndarray) -> tuple[int, ...]:
    """Of one party's features: so many rows of a picture of this shape where each party has whole ones, else flat."""
    row, width = int(np.prod(whole[1:])), columns.shape[1]
    pictures = width % row == 0 and (columns[:, 0] % row == 0).all() and (np.diff(columns) == 1).all()
    return (width // row, *whole[1:]) if pictures else (width,)
