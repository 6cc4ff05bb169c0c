"""Attacks that look at no other upload: wrong labels, wrong signs, noise, and no work at all.

Members are drawn once, by --data_seed. A forged upload stands where the honest one would have arrived, behind the wire.
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.registry import part
from fedjax_lab.spec import NonNegative, Positive, Range, Share
from fedjax_lab.types import Attack, Batch, Key, Sight, Tree

BLANCHARD = {"family": "trust", "paper": "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", "year": 2017}
TOLPEGIN = {"family": "trust", "paper": "Data Poisoning Attacks Against Federated Learning Systems", "year": 2020}
LIN = {"family": "trust", "paper": "Free-riders in Federated Learning: Attacks and Defenses", "year": 2019}


@part(kind="attack", **BLANCHARD)
def sign_flip(share: Share = 0.2, *, scale: Positive = 10.0) -> Attack:
    """Members send their own change with the opposite sign.

    Args:
      share: of the clients that attack.
      scale: what the change is multiplied by besides.
    """
    return Attack(share, forge=lambda key, sight: tree.scale(-scale, sight.own))


@part(kind="attack", **BLANCHARD)
def gaussian(share: Share = 0.2, *, std: NonNegative = 1.0, onto: Literal["nothing", "own"] = "nothing") -> Attack:
    """Members send normal noise.

    Args:
      share: of the clients that attack.
      std: of every entry.
      onto: what the noise is added to, nothing or the member's own change.
    """

    def forge(key, sight):
        noise = drawn(key, sight, lambda k, shape, dtype: std * jax.random.normal(k, shape, dtype))
        return tree.add(sight.own, noise) if onto == "own" else noise

    return Attack(share, forge=forge)


@part(kind="attack", **TOLPEGIN)
def label_flip(share: Share = 0.2, *, source: Annotated[int, Range(-1)] = -1, target: Annotated[int, Range(0)] = 0) -> Attack:
    """Members train on wrong labels: y becomes C-1-y, or one class becomes another.

    Args:
      share: of the clients that attack.
      source: the class that is relabeled; -1 for all, mirrored.
      target: what it is relabeled to.
    """

    def poison(batch: Batch, rank: jax.Array, classes: int) -> Batch:
        _labeled("label-flip", classes, source, target)
        y = batch["y"]
        return {**batch, "y": classes - 1 - y if source < 0 else jnp.where(y == source, jnp.asarray(target, y.dtype), y)}

    def probe(batch: Batch, classes: int) -> tuple[Batch, jax.Array]:
        wanted = poison(batch, 0, classes)
        return wanted, batch["mask"] & (wanted["y"] != batch["y"])

    return Attack(share, poison, probe=probe)


@part(kind="attack", **LIN)
def free_rider(share: Share = 0.2, *, sends: Literal["nothing", "noise", "uniform"] = "nothing", scale: NonNegative = 1.0,
               low: Annotated[float, Range(-1, 1)] = -1.0) -> Attack:
    """Members do no work and send what looks like a change.

    Args:
      share: of the clients that attack.
      sends: nothing is the model as it came, noise is normal, and uniform is between low * scale and scale.
      scale: of what is sent.
      low: end of uniform; 0 sends nothing negative, which does not average out.
    """
    draw = {"noise": jax.random.normal, "uniform": lambda k, shape, dtype: jax.random.uniform(k, shape, dtype, low, 1)}

    def forge(key, sight):
        if sends == "nothing":
            return tree.zeros_like(sight.own)
        return drawn(key, sight, lambda *more: scale * draw[sends](*more))

    return Attack(share, idle=True, forge=forge)


def drawn(key: Key, sight: Sight, draw) -> Tree:
    """Each member's own draw (key, shape, dtype) -> array, leaf by leaf, [A, ...]."""
    ids = jnp.take(sight.cohort.ids, sight.seats, mode="clip")

    def leaf(number, own):
        return jax.lax.map(lambda client: draw(keys.for_client(jax.random.fold_in(key, number), client), own.shape[1:], own.dtype), ids)

    leaves, structure = jax.tree.flatten(sight.own)
    return jax.tree.unflatten(structure, [leaf(number, own) for number, own in enumerate(leaves)])


def _labeled(name: str, classes: int, *chosen: int) -> None:
    if not classes or max(chosen) >= classes:
        raise ValueError(f"--attack={name}: needs labels, and classes among them; there are {classes}, asked for {max(chosen)}")


__all__ = ["drawn", "free_rider", "gaussian", "label_flip", "sign_flip"]
