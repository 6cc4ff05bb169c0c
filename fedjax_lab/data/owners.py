"""Who owns which example: the record of a partition, and how one is packed."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Partition(NamedTuple):
    """Client i owns the examples index[offset[i] : offset[i] + size[i]].

    index: int32 [T];  offset, size: int32 [N];  by: the source's keys that natural clients go by, else ();  name: as in the flag.
    """

    index: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    by: tuple[str, ...] = ()
    name: str = "given"


def packed(index: np.ndarray, size: np.ndarray) -> Partition:
    """The partition of these sizes, client by client along `index`."""
    offset = np.cumsum(size) - size
    return Partition(index.astype(np.int32), offset.astype(np.int32), size.astype(np.int32))


def by_owner(owner: np.ndarray, clients: int, generator: np.random.Generator, index: np.ndarray | None = None) -> Partition:
    """The partition in which client owner[j] gets example index[j] (j by default), in random order within each client."""
    order = generator.permutation(len(owner))
    order = order[np.argsort(owner[order].astype(np.int32), kind="stable")]
    return packed(order if index is None else index[order], np.bincount(owner, minlength=clients))


def check(examples: int, parts: int, what: str = "") -> None:
    """One line where there are more parts than examples."""
    if not 1 <= parts <= examples:
        raise ValueError(f"{what or f'clients={parts}'} is not valid: there are {examples} examples, each part needs one")


def number(labels: np.ndarray) -> np.ndarray:
    """Labels numbered 0..C-1 over the classes that occur."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers [M]; got {labels.dtype} {list(labels.shape)}")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)
