"""What a population is, in facts ready for JSON: how many clients and examples, how unlike they are, and hashes.

    who = profile(population.train, population.counts)     # who has which labels
    print(text(population.manifest))
"""
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.data import source
from fedjax_lab.types import Population, Stream

FEW = 20  # so many distinct targets are kinds of their own; more are cut into ten parts


class Profile(NamedTuple):
    """The clients' training labels by kind.

    what: "class"; "token" of texts; "target", real values, each one where they are few and else tenths of all; "" for no labels.
    counts: [N, K];  names: of the kinds [K].
    """

    what: str
    counts: np.ndarray
    names: tuple[str, ...]


def profile(train: Stream, counts: np.ndarray) -> Profile:
    """Who has which labels, from the class counts [N, C] where there are classes, else from "y" of the examples, packed by client."""
    counts, y = np.asarray(counts), train.examples.get("y")
    if counts.shape[1]:
        return Profile("class", counts, tuple(map(str, range(counts.shape[1]))))
    if y is None or not (np.issubdtype(y.dtype, np.integer) or y.ndim == 1):
        return Profile("", counts, ())
    y = np.asarray(y if train.index is None else y[train.index])
    what, names, kind = ("token", *_tokens(y)) if np.issubdtype(y.dtype, np.integer) else ("target", *_targets(y))
    owner = np.broadcast_to(np.repeat(np.arange(len(train.size)), train.size).reshape(-1, *[1] * (y.ndim - 1)), y.shape)
    cell = (owner * len(names) + kind)[kind >= 0]
    return Profile(what, np.bincount(cell, minlength=len(train.size) * len(names)).reshape(len(train.size), -1), names)


def _tokens(y: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    return tuple(map(str, range(max(int(y.max()), 0) + 1))), y


def _targets(y: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    values = np.unique(y)
    if len(values) <= FEW:
        return tuple(f"{v:g}" for v in values), np.searchsorted(values, y)
    edges = np.unique(np.quantile(y, np.linspace(0, 1, 11)))
    names = tuple(f"{a:.3g} to {b:.3g}" for a, b in itertools.pairwise(edges))
    return names, np.searchsorted(edges[1:-1], y, "right")


def facts(train: Stream, test: Stream, counts: np.ndarray, size: np.ndarray | None = None) -> dict[str, Any]:
    """The facts of a population; its hashes apart.

    size: least, tenths and most of the clients' examples.  labels, label_totals: as in `profile`, over all clients.
    entropy: mean over clients of the entropy of their labels, in nats.  total_variation: mean over clients of the distance
    1/2 sum |client - global| of their label proportions. Clients without labels do not count in these two.

    Args:
      size: [N], where a client's examples are parts of one: the nodes of its graph.
    """
    size = np.asarray(train.size if size is None else size)
    known: dict[str, Any] = {"clients": len(size), "examples": int(size.sum()), "test": int(np.asarray(test.size).sum())}
    known["size"] = {name: float(np.quantile(size, q)) for name, q in
                     (("min", 0), ("10%", 0.1), ("median", 0.5), ("90%", 0.9), ("max", 1))}
    what, table, names = profile(train, counts)
    if not table.any():
        return known
    apart = distance(table)
    known |= {"labels": what, "label_totals": table.sum(0, dtype=np.int64).tolist()}
    known |= {"label_names": list(names)} if what == "target" else {}
    shares = table[~np.isnan(apart)] / table[~np.isnan(apart)].sum(1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(1)
    return {**known, "entropy": float(entropy.mean()), "total_variation": float(np.nanmean(apart))}


def distance(counts: np.ndarray) -> np.ndarray:
    """Total variation [N] between each client's label proportions and those of all examples; NaN where it has no labels."""
    own, whole = counts.sum(1, keepdims=True), counts.sum(0, dtype=np.float64)
    return np.where(own[:, 0] > 0, 0.5 * np.abs(counts / np.maximum(own, 1) - whole / max(whole.sum(), 1)).sum(1), np.nan)


def hashed(*arrays: np.ndarray) -> str:
    """sha256 of who owns and who tests which examples."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def changed(people: Population, *arrays: np.ndarray, **more: Any) -> Population:
    """The population with the facts of its changed streams; `arrays` tell what was changed and enter the hash."""
    mark = hashlib.sha256(people.manifest["sha256_partition"].encode())
    mark.update(source.digest({str(i): a for i, a in enumerate(arrays)}).encode())
    new = facts(people.train, people.test, people.counts)
    return people._replace(manifest={**people.manifest, **new, "sha256_partition": mark.hexdigest(), **more})


def text(manifest: Mapping[str, Any]) -> str:
    """JSON with one fact a line, as it is stored and printed."""
    lines = (f"  {json.dumps(k)}: {json.dumps(v, default=_plain)}" for k, v in manifest.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
