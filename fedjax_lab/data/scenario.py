"""A whole scenario from one flag: `--partition=longtail:100+dirichlet:0.3+rotation:4`.

The items are joined by "+" and happen in this order: selections of examples (data/select.py), one partition (data/partition.py,
or data/graph.py where the source is a graph; `domains` in front of it deals every domain separately), then shifts and label masks
(data/shift.py, data/semi.py).
"""
from __future__ import annotations

import os

import numpy as np

from fedjax_lab import spec
from fedjax_lab.data import draw, graph, owners, partition, population, select, semi, shift
from fedjax_lab.data.owners import Partition
from fedjax_lab.data.source import Source
from fedjax_lab.types import Key, Population

LATER = {**shift.SHIFTS, "semi": semi.semi}
ITEMS = {**select.SELECTIONS, "domains": None, **partition.PARTITIONS, **graph.GRAPHS, **LATER}


def build(text: str, source: Source, *, key: Key, clients: int | None = None, client_test: float | None = None,
          partition_file: str | os.PathLike | None = None) -> Population:
    """The population that a flag describes.

    Args:
      text: items joined by "+"; exactly one is a partition, or none with a `partition_file`.
      source: see data/sources.py.
      key: everything is pure in it, and nothing else is.
      clients: number of clients; only natural partitions can do without.
      client_test: share of each client's examples that is held out; see data/population.py.
      partition_file: an .npz whose `idx` is a whole-number array [clients, n] padded with -1.

    Raises:
      ValueError: an unknown item or option, an order that makes no sense, or a request that cannot be met, in one line.
    """
    before, middle, after = _ordered(text, bool(partition_file))
    for item in before:
        if item != "domains":
            source = spec.build("selection", item, select.SELECTIONS, source, key)
    owned = _owned(middle, partition_file, "domains" in before, source, key, clients)
    lower = population.build if source.edges is None else graph.build
    people = lower(source, owned, key=key, client_test=client_test)
    for item in after:
        name, positional, values = spec.parse(item)
        options = spec.bind(LATER[name], positional, values, name=name)
        people = semi.semi(people, key, **options) if name == "semi" else shift.shifted(people, LATER[name](**options), key)
    return people._replace(manifest={**people.manifest, "partition": text or f"file {os.fspath(partition_file)}"})


def _owned(text: str, file: str | os.PathLike | None, apart: bool, source: Source, key: Key, clients: int | None) -> Partition:
    if file:
        return partition.given(_index(file), source.examples)
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


def _ordered(text: str, given: bool) -> tuple[list[str], str, list[str]]:
    """The items before the partition, the partition, and the items after it."""
    items = list(spec.chain(text))
    names = [spec.parse(item)[0] for item in items]
    for name in names:
        spec.choose("partition", name, ITEMS)
    kinds = [0 if n in select.SELECTIONS or n == "domains" else 2 if n in LATER else 1 for n in names]
    wanted = 0 if given else 1
    if kinds.count(1) != wanted or kinds != sorted(kinds):
        middle = "no partition, since there is a file" if given else "one partition"
        first = ", ".join([*select.SELECTIONS, "domains"])
        raise ValueError(f"'{text}' is not valid; expected {first} first if at all, {middle}, "
                         f"then {', '.join(LATER)} if at all, joined by '+'")
    start, end = kinds.count(0), kinds.count(0) + wanted
    return items[:start], "".join(items[start:end]), items[end:]


def _index(path: str | os.PathLike) -> np.ndarray:
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise ValueError(f"partition_file '{path}' not found")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as z:
        if "idx" not in z.files:
            raise ValueError(f"partition_file '{path}' lacks idx; it has {', '.join(z.files)}")
        return z["idx"]
