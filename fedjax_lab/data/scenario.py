"""A whole scenario from one flag: `--partition=longtail:100+dirichlet:0.3+rotation:4`.

The items are joined by "+" and happen in this order: selections of examples (data/select.py), one partition (data/partition.py,
or data/graph.py where the source is a graph; `domains` in front of it deals every domain separately), shifts and label masks
(data/shift.py, data/semi.py), at last a sequence of tasks (data/sequence.py). `vertical` (data/vertical.py) in the place of the
partition splits features over parties, who are then the clients, instead of examples over clients.
"""
from __future__ import annotations

import io
import os
import zipfile

import numpy as np

from fedjax_lab import spec
from fedjax_lab.data import draw, graph, owners, partition, population, select, semi, sequence, shift, vertical
from fedjax_lab.data.owners import Partition
from fedjax_lab.data.source import Source
from fedjax_lab.data.vertical import Vertical
from fedjax_lab.types import Key, Population

FIRST = {**select.SELECTIONS, "domains": None}
MIDDLE = {**partition.PARTITIONS, **graph.GRAPHS, "vertical": vertical.vertical}
LATER = {**shift.SHIFTS, "semi": semi.semi}
ITEMS = {**FIRST, **MIDDLE, **LATER, **sequence.SEQUENCES}


def build(text: str, source: Source, *, key: Key, clients: int | None = None, client_test: float | None = None,
          partition_file: str | os.PathLike | None = None) -> Population:
    """The population that a flag describes; of a sequence of tasks it is one whose training examples change with the rounds.

    Args:
      text: items joined by "+"; exactly one is a partition, or none with a `partition_file`.
      source: see data/sources.py.
      key: everything is pure in it, and nothing else is.
      clients: number of clients; only natural partitions and files can do without.
      client_test: share of each client's examples that is held out; see data/population.py.
      partition_file: an .npz whose `idx` is a whole-number array [clients, n] padded with -1.

    Raises:
      ValueError: an unknown item or option, an order that makes no sense, or a request that cannot be met, in one line.
    """
    found = stages(text, source, key=key, clients=clients, client_test=client_test, partition_file=partition_file)
    return found[0] if len(found) == 1 else sequence.joined(found)


def stages(text: str, source: Source, *, key: Key, clients: int | None = None, client_test: float | None = None,
           partition_file: str | os.PathLike | None = None) -> tuple[Population, ...]:
    """The populations of a sequence of tasks, over the same clients; a single one without a sequence. As `build` otherwise."""
    before, middle, after, last = _ordered(text, bool(partition_file))
    if middle and spec.parse(middle)[0] == "vertical":
        return (_vertical(text, source, key, clients, client_test),)
    source = _selected(before, source, key)
    owned = _owned(middle, partition_file, "domains" in before, source, key, clients)
    lower = population.build if source.edges is None else graph.build
    people = lower(source, owned, key=key, client_test=client_test)
    people = people._replace(manifest={**people.manifest, "partition": text or f"file {os.fspath(partition_file)}"})
    for item in after:
        name, positional, values = spec.parse(item)
        options = spec.bind(LATER[name], positional, values, name=name)
        people = semi.semi(people, key, **options) if name == "semi" else shift.shifted(people, LATER[name](**options), key)
    return spec.build("sequence", last[0], sequence.SEQUENCES, people, key) if last else (people,)


def parties(text: str, source: Source, *, key: Key) -> tuple[Source, Vertical]:
    """The source after its selections, and the parties of `vertical` over its examples and the flattened features of "x".

    Raises:
      ValueError: see `build`.
    """
    before, middle, after, last = _ordered(text, False)
    name, positional, values = spec.parse(middle)
    x = source.train.get("x")
    if name != "vertical" or after or last or "domains" in before or x is None or x.ndim < 2 or source.edges is not None:
        raise ValueError(f"'{text}' of '{source.name}' makes no parties; expected selections if at all, then vertical, and features to split")
    source = _selected(before, source, key)
    options = spec.bind(vertical.vertical, positional, values, name=name)
    return source, vertical.vertical(int(np.prod(x.shape[1:])), source.examples, key, **options)


def _vertical(text: str, source: Source, key: Key, clients: int | None, client_test: float | None) -> Population:
    source, parts = parties(text, source, key=key)
    if clients not in (None, len(parts.columns)):
        raise ValueError(f"--clients={clients}: the partition makes {len(parts.columns)} parties; leave --clients out")
    if client_test is not None:
        raise ValueError(f"--client_test={client_test}: no party can test alone, for it has a part of the features; leave it out")
    return vertical.build(source, parts, text)


def _selected(items: list[str], source: Source, key: Key) -> Source:
    for item in items:
        if item != "domains":
            source = spec.build("selection", item, select.SELECTIONS, source, key)
    return source


def _owned(text: str, file: str | os.PathLike | None, apart: bool, source: Source, key: Key, clients: int | None) -> Partition:
    if file:
        owned = partition.given(_index(file), source.examples)
        if clients not in (None, len(owned.size)):
            raise ValueError(f"--clients={clients}: the partition makes {len(owned.size)} clients; leave --clients out")
        return owned
    name, positional, values = spec.parse(text)
    if name in graph.GRAPHS:
        if source.edges is None or clients is None:
            lacks = "a graph, such as cora" if source.edges is None else "a number of clients"
            raise ValueError(f"partition '{name}' needs {lacks}")
        options = spec.bind(graph.GRAPHS[name], positional, values, name=name)
        return graph.GRAPHS[name](source.examples, source.edges, key, clients, **options)._replace(name=text)
    return within_domains(text, source, key, clients) if apart else partition.make(text, source, key=key, clients=clients)


def within_domains(text: str, source: Source, key: Key, clients: int | None) -> Partition:
    """The partition applied inside every domain, the values of the key "domain"; clients are in proportion to examples."""
    if "domain" not in source.keys:
        raise ValueError(f"'domains' needs a source with domains, such as domains:mnist/digits; '{source.name}' has none")
    domain = source.keys["domain"]
    totals = np.bincount(domain)
    if clients is None or clients < len(totals):
        raise ValueError(f"clients={clients} is not valid: there are {len(totals)} domains, and each needs a client")
    parts = []
    for d, count in enumerate(draw.apportion(totals, clients, low=1)):
        rows = np.flatnonzero(domain == d)
        part = partition.make(text, select.take(source, domain == d), key=key, clients=int(count))
        parts.append((rows[part.index], part.size))
    return owners.packed(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def _ordered(text: str, given: bool) -> tuple[list[str], str, list[str], list[str]]:
    """The items before the partition, the partition, those after it, and the sequence."""
    items = list(spec.chain(text))
    names = [spec.parse(item)[0] for item in items]
    for name in names:
        spec.choose("partition", name, ITEMS)
    order = (FIRST, MIDDLE, LATER, sequence.SEQUENCES)
    kinds = [next(i for i, group in enumerate(order) if name in group) for name in names]
    if kinds.count(1) != (0 if given else 1) or kinds.count(3) > 1 or kinds != sorted(kinds):
        middle = "no partition, since there is a file" if given else "one partition"
        raise ValueError(f"'{text}' is not valid; expected {', '.join(FIRST)} first if at all, {middle}, then {', '.join(LATER)} if at all, "
                         f"then one of {', '.join(sequence.SEQUENCES)} if at all, joined by '+'")
    before, middle, after, last = ([item for item, kind in zip(items, kinds) if kind == k] for k in range(4))
    return before, "".join(middle), after, last


def _index(path: str | os.PathLike) -> np.ndarray:
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise ValueError(f"partition_file '{path}' not found")
    if file.is_dir() or not zipfile.is_zipfile(io.BytesIO(file.read_bytes())):
        raise ValueError(f"--partition_file={path}: is no .npz file; expected one whose `idx` is an integer array [clients, n], padded with -1")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as z:
        if "idx" not in z.files:
            raise ValueError(f"partition_file '{path}' lacks idx; it has {', '.join(z.files)}")
        return z["idx"]
