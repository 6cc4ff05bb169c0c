"""Backdoors: members teach the model that a pattern of pixels means one class, and send their change so large that it replaces the model.

    (1)  in a batch, the first `poisoned` of its examples carry the trigger and the label c
    (2)  a member sends gamma (X - w) of the model X that it trained, gamma = n/f: the mean of all becomes X     (f members among n)
                                                                                    (Bagdasaryan et al., AISTATS 2020)
    (3)  distributed: member number r shows only part r mod 4 of the trigger; the whole is tested          (Xie et al., ICLR 2020)

The trigger is a square of `size` pixels in the corner of the image, cut into four for (3). "attack_success" is the share of the test
images of other classes that the trigger turns into class c.
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab.parts.gram import scaled
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Range, Share
from fedjax_lab.types import Attack, Batch, Sight, Tree


@part(kind="attack", family="trust", paper="How To Backdoor Federated Learning", year=2020)
def replacement(share: Share = 0.1, *, target: Annotated[int, Range(0)] = 0, poisoned: Share = 0.3, gamma: NonNegative = 0.0, size: Count = 4,
                value: float = 1.0, trigger: Literal["single", "distributed"] = "single") -> Attack:
    """Members train on images with a trigger and replace the model with theirs.

    Args:
      share: of the clients that attack.
      target: the class that the trigger means.
      poisoned: share of each batch that carries the trigger.
      gamma: what members multiply their change by; 0 for the uploads heard over the members among them.
      size: of the trigger's square, in pixels.
      value: of its pixels.
      trigger: distributed gives every member one of its four parts.
    """

    def poison(batch: Batch, rank: jax.Array, classes: int) -> Batch:
        _pictured(batch, classes, target)
        rows = jnp.arange(batch["mask"].shape[0])
        chosen = batch["mask"] & (rows < jnp.ceil(poisoned * jnp.sum(batch["mask"])))  # (1)
        part = stamp(batch["x"].shape, size) if trigger == "single" else quarters(batch["x"].shape, size)[rank % 4]  # (3)
        x = jnp.where(chosen.reshape(-1, *[1] * (batch["x"].ndim - 1)) & part, jnp.asarray(value, batch["x"].dtype), batch["x"])
        return {**batch, "x": x, "y": jnp.where(chosen, jnp.asarray(target, batch["y"].dtype), batch["y"])}

    def forge(key: jax.Array, sight: Sight) -> Tree:
        factor = gamma or jnp.sum(sight.cohort.mask) / jnp.maximum(jnp.sum(sight.members), 1)
        return scaled(jnp.full(sight.seats.shape, factor), sight.own)  # (2)

    def probe(batch: Batch, classes: int) -> tuple[Batch, jax.Array]:
        x = jnp.where(stamp(batch["x"].shape, size), jnp.asarray(value, batch["x"].dtype), batch["x"])
        return {**batch, "x": x, "y": jnp.full_like(batch["y"], target)}, batch["mask"] & (batch["y"] != target)

    return Attack(share, poison, forge=forge, probe=probe)


def stamp(shape: tuple[int, ...], size: int) -> jax.Array:
    """bool [H, W, 1]: the square of the trigger in images [B, H, W, C]."""
    row, column = jnp.arange(shape[1])[:, None, None], jnp.arange(shape[2])[None, :, None]
    return (row < size) & (column < size)


def quarters(shape: tuple[int, ...], size: int) -> jax.Array:
    """bool [4, H, W, 1]: the parts of the trigger, by rows and columns above and below its middle."""
    row, column = jnp.arange(shape[1])[:, None, None], jnp.arange(shape[2])[None, :, None]
    half = (size + 1) // 2
    return jnp.stack([stamp(shape, size) & ((row < half) == up) & ((column < half) == left) for up in (True, False) for left in (True, False)])


def _pictured(batch: Batch, classes: int, target: int) -> None:
    if batch["x"].ndim != 4 or target >= classes:
        raise ValueError(f"--attack=replacement: needs images with labels, and target among them; x is {batch['x'].ndim - 1}-dimensional, "
                         f"there are {classes} classes, target is {target}")


__all__ = ["quarters", "replacement", "stamp"]
