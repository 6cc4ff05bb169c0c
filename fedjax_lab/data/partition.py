"""Partitions: which client owns which training example.

A partition is a pure function (labels, key, clients, options) -> Partition. Each example is used exactly once, every client has
at least one, and nothing is drawn again until it fits. `PARTITIONS` names them for flags, `--partition=dirichlet:0.3`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedjax_lab import spec
from fedjax_lab.data import draw, owners
from fedjax_lab.data.draw import Law
from fedjax_lab.data.label_skew import dirichlet, dirichlet_classes, pathological, shards
from fedjax_lab.data.owners import Partition
from fedjax_lab.data.source import Source
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Key


def iid(labels: np.ndarray, key: Key, clients: int, *, sizes: Law = "equal", skew: NonNegative = 1.0) -> Partition:
    """Examples at random: McMahan et al. 2017, "IID".

    Args:
      labels: [M]; only their number matters.
      sizes: the law of the client sizes: equal (differing by at most one), lognormal, powerlaw or dirichlet.
      skew: how unequal the sizes are; 0 is equal (data/draw.py).
    """
    owners.check(len(labels), clients)
    generator = draw.rng(key)
    size = draw.sizes(sizes, skew, len(labels), clients, generator)
    return owners.packed(generator.permutation(len(labels)), size)


def quantity(labels: np.ndarray, key: Key, clients: int, skew: NonNegative = 1.0, *, law: Law = "lognormal") -> Partition:
    """Quantity skew: examples at random, unequal sizes (Li et al. 2022, "quantity skew", is law=dirichlet with skew = 1 / beta).

    Args:
      skew: how unequal the sizes are; 0 is equal (data/draw.py).
      law: lognormal, powerlaw or dirichlet.
    """
    return iid(labels, key, clients, sizes=law, skew=skew)


def natural(keys: Mapping[str, np.ndarray], key: Key, clients: int | None, by: tuple[str, ...] | None = None) -> Partition:
    """Natural clients: one per value of a key of the source (role, drawer, user), or per pair of values that occurs.

    Args:
      keys: {name: whole numbers [M]}.
      clients: None takes all; fewer are drawn at random, and then the examples of the others are not used.
      by: the key, or several as drawer/alphabet; the source's first by default.
    """
    if not keys:
        raise ValueError("this source has no natural clients; choose another partition, such as iid or dirichlet")
    by = tuple(by or list(keys)[:1])
    columns = [spec.choose("key", name, keys) for name in by]
    owner = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)
    count = int(owner.max()) + 1
    if clients is not None and not 1 <= clients <= count:
        raise ValueError(f"clients={clients} is not valid; this source has {count} natural clients")
    generator = draw.rng(key)
    chosen = np.sort(generator.permutation(count)[:clients])
    name = np.full(count, -1)
    name[chosen] = np.arange(len(chosen))
    used = np.flatnonzero(name[owner] >= 0)
    return owners.by_owner(name[owner[used]], len(chosen), generator, used)._replace(by=by)


def given(index: np.ndarray, examples: int) -> Partition:
    """A partition made elsewhere: `index` is a whole-number array [clients, n], padded with -1 (`--partition_file`).

    Raises:
      ValueError: an index out of range, an example used twice, or a client without any.
    """
    index = np.asarray(index)
    if index.ndim != 2 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"a partition is an integer array [clients, n] padded with -1; got {index.dtype} {list(index.shape)}")
    held, flat = index >= 0, index[index >= 0]
    if flat.size and flat.max() >= examples:
        raise ValueError(f"the partition names example {flat.max()}; the source has {examples}")
    if len(np.unique(flat)) < len(flat):
        raise ValueError(f"the partition uses {len(flat) - len(np.unique(flat))} examples more than once")
    if not held.any(1).all():
        raise ValueError(f"client {int(np.argmin(held.any(1)))} of the partition has no example")
    return owners.packed(flat, held.sum(1))


PARTITIONS: dict[str, Callable[..., Partition]] = {f.__name__: f for f in (
    iid, shards, dirichlet, dirichlet_classes, pathological, quantity, natural)}


def make(text: str, source: Source, *, key: Key, clients: int | None = None) -> Partition:
    """The partition that a flag names, NAME[:VALUE][,arg=value...], of a source's training examples.

    Args:
      text: for example "dirichlet:0.3,sizes=lognormal" or "natural:drawer/alphabet".
      source: where the labels or the natural keys come from.
      key: the partition is pure in it.
      clients: number of clients; only `natural` can do without.

    Raises:
      ValueError: an unknown name or option, or a request that cannot be met, in one line.
    """
    name, positional, values = spec.parse(text)
    factory = spec.choose("partition", name, PARTITIONS)
    options = spec.bind(factory, positional, values, name=name)
    if factory is natural:
        return natural(source.keys, key, clients, **options)._replace(name=text)
    if clients is None:
        raise ValueError(f"partition '{name}' needs a number of clients")
    labels = source.train.get("y")
    if labels is None or not source.classes or labels.ndim != 1:
        if factory not in (iid, quantity):
            raise ValueError(f"partition '{name}' needs classes, '{source.name}' has none; choose iid, quantity or natural")
        labels = np.zeros(source.examples, np.int32)
    return factory(labels, key, clients, **options)._replace(name=text)
