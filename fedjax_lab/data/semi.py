"""Semi-supervised scenarios: which training examples have a label that a method may read."""
from __future__ import annotations

from typing import Literal

import numpy as np

from fedjax_lab.data import draw, manifest
from fedjax_lab.data.select import rank_in_class
from fedjax_lab.spec import Count, Share
from fedjax_lab.types import Key, Population


def semi(people: Population, key: Key, share: Share = 0.1, *, where: Literal["client", "some", "server"] = "client",
         hidden: Count | Literal[0] = 0) -> Population:
    """Adds the field "labeled" (bool) to the training examples; "y" stays, for evaluation, and methods must not read it
    elsewhere.

    labels at the client: each client has a label for `share` of its examples of each class (rounded without bias), at least one
        (FedMatch "labels at client", Jeong et al. 2021);
    labels at some clients: `share` of the clients, at least one, have all their labels, the others none (RSCFed, Liang et al.
    2022); labels at the server: no client has any; split the server's labeled set off with `select.public` ("labels at server").

    Args:
      share: of examples (where=client) or of clients (where=some).
      where: who has labels.
      hidden: open world: so many classes, drawn at random, have no label anywhere.
    """
    labels, generator = people.train.examples.get("y"), draw.rng(key, "semi")
    classes = people.counts.shape[1]
    if not classes or labels.ndim != 1:
        raise ValueError("'semi' needs a class per example; this source has none")
    if hidden >= classes:
        raise ValueError(f"hidden={hidden} is not valid; expected fewer than the {classes} classes")
    owner = np.repeat(np.arange(people.clients), people.train.size)
    seen = ~np.isin(labels, generator.permutation(classes)[:hidden])
    if where == "client":
        labeled = _per_cell(owner * classes + labels, owner, seen, share, generator)
    elif where == "some":
        count = max(1, round(share * people.clients))
        labeled = np.isin(owner, generator.permutation(people.clients)[:count]) & seen
    else:
        labeled = np.zeros(len(owner), bool)
    people = people._replace(train=people.train._replace(examples={**people.train.examples, "labeled": labeled}))
    return manifest.changed(people, labeled, labeled=int(labeled.sum()))


def _per_cell(cell: np.ndarray, owner: np.ndarray, seen: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """`share` of each cell, rounded up or down without bias, and one example of each client whose cells all came out empty."""
    number = np.unique(cell, return_inverse=True)[1].reshape(-1)
    wanted = np.floor(share * np.bincount(number) + generator.random(number.max() + 1))
    labeled = (rank_in_class(number, generator) < wanted[number]) & seen
    if share > 0:
        open_rows = np.flatnonzero(seen & (np.bincount(owner, labeled)[owner] == 0))
        labeled[open_rows[np.unique(owner[open_rows], return_index=True)[1]]] = True
    return labeled
