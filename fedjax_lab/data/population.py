"""Populations: a source's examples packed client by client, with each client's test examples and a manifest.

    source = sources.load("mnist")
    population = build(source, partition.make("dirichlet:0.3", source, key=key, clients=100), key=key)

A user's own arrays need no source: see `from_arrays`.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedjax_lab.data import draw, manifest, partition, source, transport
from fedjax_lab.data.partition import Partition
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.types import Key, Population, Stream


def build(origin: Source, owned: Partition, *, key: Key, client_test: float | None = None) -> Population:
    """The population of a partition. Arrays stay on the host.

    A client's test examples are, in this order of preference: with `client_test`, that share of its own examples, which then make
    up the central test set too; where the clients are natural and the source says whose its test examples are, the client's own;
    else a draw from the central test set by the client's training label proportions, without repetition.

    Args:
      origin: the source.
      owned: which client owns which training example.
      key: for the choice of test examples, pure in it.
      client_test: share of each client's examples that is held out, in (0, 1); at least one, and at least one is left.

    Raises:
      ValueError: `client_test` is out of range, or a client is too small to hold out an example.
    """
    generator = draw.rng(key, "client_test")
    examples = {field: array[owned.index] for field, array in origin.train.items()}
    if client_test is not None:
        train, test, tested = hold_out(examples, owned.size, client_test, generator)
    else:
        train = Stream(examples, _starts(owned.size), owned.size)
        test = Stream(dict(origin.test), *_test_index(origin, owned, generator))
        tested = test.index
    counts = class_counts(train.examples.get("y"), train.size, origin.classes)
    facts = {**origin.manifest, "partition": owned.name, "client_test": client_test, **manifest.facts(train, test, counts)}
    facts["sha256_partition"] = manifest.hashed(owned.index, owned.size, train.size, test.size, tested)
    return Population(train, test, counts, facts, origin.public)


def from_arrays(x: np.ndarray, y: np.ndarray, clients: Sequence[Sequence[int]] | np.ndarray, x_test: np.ndarray,
                y_test: np.ndarray,
                *, key: Key, client_test: float | None = None, name: str = "arrays") -> Population:
    """A population of a user's own arrays.

    >>> x, y = np.zeros((6, 4), np.float32), np.array([0, 1, 2, 0, 1, 2])
    >>> people = from_arrays(x, y, [[0, 2, 5], [1, 3]], x[:3], y[:3], key=jax.random.key(0))  # nobody has example 4
    >>> people.clients, people.train.size.tolist(), people.counts.tolist()
    (2, [3, 2], [[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])

    Args:
      x, y: [M, ...] training examples; whole-number y are classes.
      clients: the examples of each client, as lists of indices, as an array [clients, n] padded with -1, or as an array [M] with
        the number of each example's client.
      x_test, y_test: the central test set.
      key: for the choice of the clients' test examples.
      client_test: share of each client's examples that is held out as its test set, in (0, 1); by default test sets are drawn from the
        central one, with the client's label proportions.
      name: for the manifest.

    Raises:
      ValueError: an index that is not there, or given twice; a client without an example, or too small to hold one out.
    """
    y, y_test = (np.asarray(a) for a in (y, y_test))
    whole = np.issubdtype(y.dtype, np.integer)
    y, y_test = (a.astype(np.int32 if whole else np.float32) for a in (y, y_test))
    origin = source.make(name, {"x": source.images(x), "y": y}, {"x": source.images(x_test), "y": y_test},
                         int(max(y.max(), y_test.max())) + 1 if whole else 0)
    if isinstance(clients, np.ndarray) and clients.ndim == 1:
        owned = partition.natural({"client": clients}, key, None)
    else:
        longest = max(len(row) for row in clients)
        owned = partition.given(np.array([[*row, *[-1] * (longest - len(row))] for row in clients], np.int64), len(y))
    return build(origin, owned, key=key, client_test=client_test)


def hold_out(examples: Arrays, size: np.ndarray, share: float, generator: np.random.Generator
             ) -> tuple[Stream, Stream, np.ndarray]:
    """Splits packed examples at random inside each client: the training stream, the test stream and the latter's rows.

    Raises:
      ValueError: the share is not in (0, 1), or a client has a single example.
    """
    if not 0 < share < 1:
        raise ValueError(f"client_test={share} is not valid; expected a share in (0, 1)")
    if size.min() < 2:
        raise ValueError(f"client_test={share} needs two examples per client; client {int(np.argmin(size))} has {size.min()}")
    test_size = np.clip(np.round(share * size), 1, size - 1).astype(np.int32)
    owner = np.repeat(np.arange(len(size)), size)
    order = generator.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    place = np.arange(len(owner)) - np.repeat(_starts(size), size)
    test = place < np.repeat(test_size, size)
    held = np.sort(order[test])
    sides = ((np.sort(order[~test]), size - test_size), (held, test_size))
    return *(Stream({f: a[rows] for f, a in examples.items()}, _starts(n), n.astype(np.int32)) for rows, n in sides), held


def class_counts(labels: np.ndarray | None, size: np.ndarray, classes: int) -> np.ndarray:
    """float32 [N, C] examples per client and class of packed labels [M]; [N, 0] without classes. Negative labels do not count."""
    if labels is None or not classes or labels.ndim != 1:
        return np.zeros((len(size), 0), np.float32)
    cell = np.repeat(np.arange(len(size)), size) * classes + labels
    return np.bincount(cell[labels >= 0], minlength=len(size) * classes).reshape(len(size), classes).astype(np.float32)


def _test_index(origin: Source, owned: Partition, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """offset, size [N] and index [T] of the clients' examples in the central test set."""
    clients, examples = len(owned.size), len(next(iter(origin.test.values())))
    if owned.by and all(name in origin.test_keys for name in owned.by):
        owner = _same_client(origin, owned)
        index = np.argsort(np.where(owner < 0, clients, owner), kind="stable")[: (owner >= 0).sum()]
        size = np.bincount(owner[owner >= 0], minlength=clients)
    else:
        share = np.clip(np.round(owned.size * (examples / origin.examples)), 1, examples).astype(np.int64)
        mine, theirs = _kinds(origin.train, origin.keys, origin)[owned.index], _kinds(origin.test, origin.test_keys, origin)
        counts = class_counts(mine, owned.size, int(max(mine.max(), theirs.max())) + 1)
        index, size = by_proportions(counts, share, theirs, generator)
    return _starts(size), size.astype(np.int32), index.astype(np.int32)


def _kinds(arrays: Arrays, keys: Arrays, origin: Source) -> np.ndarray:
    """Labels, by domain where the source has domains; zeros where there are no classes: then every example is of one kind."""
    labels = arrays.get("y")
    if not origin.classes or labels.ndim != 1:
        return np.zeros(len(next(iter(arrays.values()))), np.int32)
    return labels + origin.classes * keys["domain"] if "domain" in origin.test_keys else labels


def _same_client(origin: Source, owned: Partition) -> np.ndarray:
    """The client [M_test] of every test example by the source's own keys, -1 where it is nobody's."""
    first = owned.index[owned.offset]
    names = np.stack([origin.keys[name][first] for name in owned.by], 1)
    theirs = np.stack([origin.test_keys[name] for name in owned.by], 1)
    _, number = np.unique(np.concatenate([names, theirs]), axis=0, return_inverse=True)
    client = np.full(number.max() + 1, -1)
    client[number.reshape(-1)[: len(names)]] = np.arange(len(names))
    return client[number.reshape(-1)[len(names):]]


def by_proportions(counts: np.ndarray, size: np.ndarray, labels: np.ndarray, generator: np.random.Generator
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Draws for each client `size` examples with the label proportions of `counts`, rounded up or down without bias.

    Each client walks along each class from a random place of one random order, so it repeats no example; a class that has fewer
    than its share gives all it has. What falls on a class without any goes to the client's other classes.

    Args:
      counts: [N, C].
      size: [N].
      labels: [M], of the examples to draw from.

    Returns:
      index [T] and the clients' sizes [N].
    """
    have = np.bincount(labels, minlength=counts.shape[1])[: counts.shape[1]]
    shares = np.where(have > 0, counts, 0).astype(np.float64)
    shares = np.where(shares.sum(1, keepdims=True) > 0, shares, have)
    real = shares * (size / shares.sum(1))[:, None]
    wanted = np.minimum(transport.round_rows(real, size, generator), have)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    cells = wanted.ravel()
    start = generator.integers(0, 2**62, cells.shape) % np.maximum(np.tile(have, len(size)), 1)
    step = np.arange(cells.sum()) - np.repeat(np.cumsum(cells) - cells, cells)
    kind = np.repeat(np.tile(np.arange(len(have)), len(size)), cells)
    index = order[(np.cumsum(have) - have)[kind] + (np.repeat(start, cells) + step) % have[kind]]
    return index, wanted.sum(1)


def _starts(size: np.ndarray) -> np.ndarray:
    return (np.cumsum(size) - size).astype(np.int32)
