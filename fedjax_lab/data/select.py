"""Which of a source's training examples take part: long tails, subsets, and public sets split off beforehand."""
from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np

from fedjax_lab.data import draw, owners
from fedjax_lab.data.source import Source, digest, make
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Key


def longtail(source: Source, key: Key, factor: Annotated[float, Range(1)] = 100.0) -> Source:
    """A global long tail: class c keeps the share factor**(-c / (C - 1)) of its examples, at least one.

    The exponential profile of Cao et al. 2019 (LDAM), used federatedly by Shang et al. 2022 (CReFF) with a Dirichlet split after
    it. The first class keeps all, the last 1 / factor; the test set stays balanced.

    Args:
      factor: imbalance, of the most to the least frequent class where all were equal.
    """
    labels = need_classes(source, "longtail")
    totals = np.bincount(labels, minlength=source.classes)
    share = factor ** (-np.arange(source.classes) / max(source.classes - 1, 1))
    wanted = np.where(totals > 0, np.maximum(np.round(totals * share), 1), 0)
    return take(source, rank_in_class(labels, draw.rng(key, "longtail")) < wanted[labels])


def subset(source: Source, key: Key, examples: Count = 10000) -> Source:
    """A random subset of the training examples, with class frequencies kept up to rounding.

    Args:
      examples: how many.
    """
    owners.check(source.examples, examples, f"subset:{examples}")
    return take(source, _stratified(source, examples, draw.rng(key, "subset")))


def public(source: Source, key: Key, examples: Count = 1000) -> Source:
    """Splits off a public (proxy) set, with class frequencies kept up to rounding; it is `source.public`, and no client will own it.

    Args:
      examples: how many training examples become public.
    """
    owners.check(source.examples - 1, examples, f"public:{examples}")
    chosen = _stratified(source, examples, draw.rng(key, "public"))
    shared, rest = {field: array[chosen] for field, array in source.train.items()}, take(source, ~chosen)
    return rest._replace(public=shared, manifest={**rest.manifest, "public_examples": examples, "sha256_public": digest(shared)})


def holdout(source: Source, key: Key, clients: Count = 8) -> Source:
    """Keeps some natural clients, drawn at random, and makes the training examples of all others public: what a foundation model is made of.

    The test set is that of those who stay, where it says whose its examples are.

    Args:
      clients: how many stay.
    """
    if not source.keys:
        raise ValueError(f"'holdout' needs natural clients, which source '{source.name}' lacks")
    name, owner = next(iter(source.keys.items()))
    people = np.unique(owner)
    if clients >= len(people):
        raise ValueError(f"holdout:{clients} is not valid: there are {len(people)} natural clients, and some must become public")
    stay = draw.rng(key, "holdout").permutation(people)[:clients]
    mine = np.isin(owner, stay)
    shared, rest = {field: array[~mine] for field, array in source.train.items()}, take(source, mine)
    if name in source.test_keys:
        test = np.isin(source.test_keys[name], stay)
        tested, keys = ({field: array[test] for field, array in group.items()} for group in (source.test, source.test_keys))
        kept = make(source.name, rest.train, tested, source.classes, rest.keys, keys, source.truth)
        rest = rest._replace(test=tested, test_keys=keys, manifest={**rest.manifest, **kept.manifest})
    return rest._replace(public=shared, manifest={**rest.manifest, "public_examples": int((~mine).sum()), "sha256_public": digest(shared)})


SELECTIONS: dict[str, Callable[..., Source]] = {f.__name__: f for f in (longtail, subset, public, holdout)}


def take(source: Source, kept: np.ndarray) -> Source:
    """The source with these training examples only, a mask [M].

    Raises:
      ValueError: the source is a graph, whose edges name its examples.
    """
    if source.edges is not None:
        raise ValueError(f"source '{source.name}' is a graph, of which no examples can be left out")
    train, keys = ({name: array[kept] for name, array in group.items()} for group in (source.train, source.keys))
    smaller = make(source.name, train, source.test, source.classes, keys, source.test_keys, source.truth)
    return smaller._replace(manifest={**source.manifest, **smaller.manifest}, public=source.public)


def need_classes(source: Source, what: str) -> np.ndarray:
    """The training labels [M].

    Raises:
      ValueError: the source has no classes.
    """
    labels = source.train.get("y")
    if labels is None or not source.classes or labels.ndim != 1:
        raise ValueError(f"'{what}' needs classes, which source '{source.name}' lacks")
    return labels


def rank_in_class(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The place [M] of each example in a random order of its class."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _stratified(source: Source, examples: int, generator: np.random.Generator) -> np.ndarray:
    labels = source.train["y"] if source.classes and source.train["y"].ndim == 1 else np.zeros(source.examples, np.int64)
    totals = np.bincount(labels)
    return rank_in_class(labels, generator) < draw.apportion(totals, examples, high=totals)[labels]
