"""Label skew: partitions in which clients differ by their classes.

"Dirichlet" means several things in the literature: see `dirichlet` (proportions of classes per client) and `dirichlet_classes`
(proportions of clients per class).
"""
from __future__ import annotations

from typing import Literal

import numpy as np

from fedjax_lab.data import draw, owners, transport
from fedjax_lab.data.draw import Law
from fedjax_lab.data.owners import Partition
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Key


def shards(labels: np.ndarray, key: Key, clients: int, per_client: Count = 2) -> Partition:
    """Label shards: McMahan et al. 2017, "pathological non-IID".

    The examples are sorted by label, cut into clients * per_client shards of equal size (differing by at most one), and each
    client gets per_client of them at random.

    Args:
      per_client: shards per client.
    """
    count = clients * per_client
    owners.check(len(labels), count, f"{clients} clients x {per_client} shards")
    generator = draw.rng(key)
    order = generator.permutation(len(labels))
    order = order[np.argsort(owners.number(labels)[order], kind="stable")]
    owner = np.repeat(generator.permutation(count) % clients, draw.apportion(np.ones(count), len(labels)))
    return owners.by_owner(owner, clients, generator, order)


def dirichlet(labels: np.ndarray, key: Key, clients: int, alpha: Positive = 0.3, *, sizes: Law = "equal", skew: NonNegative = 1.0,
              prior: Literal["global", "uniform"] = "global") -> Partition:
    """Dirichlet over CLASSES per CLIENT: the label proportions of each client are ~ Dirichlet(alpha * C * prior).

    Where the classes are equally frequent this is Dirichlet(alpha, ..., alpha), as in Acar et al. 2021 (FedDyn); Hsu et al. 2019
    write the total concentration, which is alpha * C here. The drawn proportions are moved onto the sizes and class totals by the
    nearest table in relative entropy (data/transport.py), so both hold exactly and nothing is drawn again. Small alpha: about one
    class per client; large alpha: the prior for all.

    Args:
      alpha: concentration per class; small is heterogeneous, inf is none.
      sizes: the law of the client sizes: equal (differing by at most one), lognormal, powerlaw or dirichlet.
      skew: how unequal the sizes are; 0 is equal (data/draw.py).
      prior: global (the class frequencies) or uniform.
    """
    owners.check(len(labels), clients)
    generator = draw.rng(key)
    totals = _totals(labels)
    mean = totals / totals.mean() if prior == "global" else np.ones(len(totals))
    logits = np.broadcast_to(np.log(mean), (clients, len(totals)))
    if alpha < np.inf:
        logits = draw.log_gamma(alpha * mean, logits.shape, generator)
    size = draw.sizes(sizes, skew, len(labels), clients, generator)
    return _deal(labels, transport.table(logits, size, totals, generator), generator)


def dirichlet_classes(labels: np.ndarray, key: Key, clients: int, alpha: Positive = 0.5, *, balanced: bool = False) -> Partition:
    """Dirichlet over CLIENTS per CLASS: the examples of each class are split by proportions ~ Dirichlet_N(alpha).

    Yurochkin et al. 2019 and Li et al. 2022 (NIID-Bench): sizes come out unequal. With `balanced` the same draw is moved onto
    equal sizes by the nearest table in relative entropy; the released codes (MOON, FL-bench) instead stop filling a client at M /
    N.

    Args:
      alpha: concentration; small is heterogeneous, inf splits every class evenly.
      balanced: equal client sizes.
    """
    owners.check(len(labels), clients)
    generator = draw.rng(key)
    totals = _totals(labels)
    logits = np.zeros((clients, len(totals)))
    if alpha < np.inf:
        logits = draw.log_gamma(alpha, logits.shape, generator)
    top = logits.max(0)
    logits = logits - top - np.log(np.exp(logits - top).sum(0)) + np.log(totals)
    weights = np.ones(clients) if balanced else np.exp(logits).sum(1)
    size = draw.apportion(weights, len(labels), low=1)
    return _deal(labels, transport.table(logits, size, totals, generator), generator)


def pathological(labels: np.ndarray, key: Key, clients: int, classes: Count = 2, *, mixing: Count = 20) -> Partition:
    """Exactly k classes per client (PFLlib's "pat", FedRep's setting): no proportions, no rejection.

    A class has holders in proportion to its examples, and its examples are split evenly among them.

    Args:
      classes: k, the classes of each client.
      mixing: sweeps of random exchanges of classes between pairs of clients.
    """
    totals = _totals(labels)
    kinds = len(totals)
    if classes > kinds:
        raise ValueError(f"classes={classes} per client is more than the {kinds} classes; choose 1..{kinds}")
    room = np.minimum(totals, clients)
    if not kinds <= clients * classes <= room.sum():
        raise ValueError(f"{clients} clients x {classes} classes cannot use {kinds} classes of {len(labels)} examples once each; "
                         f"clients * classes must be in {kinds}..{room.sum()}")
    generator = draw.rng(key)
    holders = draw.apportion(totals, clients * classes, low=1, high=room)
    names = generator.permutation(kinds)
    slot = np.repeat(names, holders[names])
    has = np.zeros((clients, kinds), bool)
    has[np.tile(generator.permutation(clients), classes), slot] = True
    for _ in range(mixing):
        _exchange(has, generator)
    split = np.zeros((clients, kinds), np.int64)
    for c in range(kinds):
        split[has[:, c], c] = generator.permutation(draw.apportion(np.ones(holders[c]), totals[c]))
    return _deal(labels, split, generator)


def _totals(labels: np.ndarray) -> np.ndarray:
    return np.bincount(owners.number(labels))


def _deal(labels: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> Partition:
    """Deals the examples of each class at random, counts[i, c] of them to client i."""
    clients, kinds = counts.shape
    order = generator.permutation(len(labels))
    order = order[np.argsort(owners.number(labels)[order], kind="stable")]
    owner = np.repeat(np.tile(np.arange(clients, dtype=np.int32), kinds), counts.T.ravel())
    return owners.by_owner(owner, clients, generator, order)


def _exchange(has: np.ndarray, generator: np.random.Generator) -> None:
    """Pairs the clients at random; each pair exchanges one class that only one of them holds for one that only the other does."""
    left, right = np.split(generator.permutation(len(has))[: len(has) // 2 * 2], 2)
    noise = generator.random((2, len(left), has.shape[1]))
    give, take = (np.where(has[a] & ~has[b], n, 0) for a, b, n in ((left, right, noise[0]), (right, left, noise[1])))
    free = np.flatnonzero((give.max(1) > 0) & (take.max(1) > 0))
    a, b, x, y = left[free], right[free], give.argmax(1)[free], take.argmax(1)[free]
    has[a, x], has[b, x], has[b, y], has[a, y] = False, True, False, True
