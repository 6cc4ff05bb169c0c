"""Vertical partitions: parties that hold different features of the same entities, few of which are aligned."""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.data import draw, manifest, owners
from fedjax_lab.data.owners import Partition
from fedjax_lab.spec import Count, Share
from fedjax_lab.types import Key


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
