"""Features of a client's examples and of generated ones beside them, batch by batch and without a copy of any."""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.types import Batch, Key, View


class Plan(NamedTuple):
    """How many examples are generated, of C classes.

    target: generated examples fill a class up to so many;  near: candidates around own examples, where others' means count too;
    around: candidates around every other client's mean, 0 for a class that grows around own examples alone.
    """

    target: int
    near: int
    around: int


class Augmented(NamedTuple):
    """A View whose batches are {"z": [B, F], "y": [B], "mask": [B]}; the client's own examples come first, then class by class.

    order: int32 [cap], own examples by class;  number: int32 [C];  extra: int32 [C], how many are generated;  candidates: int32 [C].
    """

    view: View
    embed: Callable[[Batch], jax.Array]
    key: Key
    plan: Plan
    roots: jax.Array
    means: jax.Array
    others: jax.Array
    order: jax.Array
    number: jax.Array
    extra: jax.Array
    candidates: jax.Array

    @property
    def size(self) -> jax.Array:
        return self.view.size + jnp.sum(self.extra)

    @property
    def capacity(self) -> int:
        return self.view.capacity + self.plan.target * len(self.number)

    def take(self, positions: jax.Array, mask: jax.Array) -> Batch:
        """The examples at positions [B]."""
        new, ends = positions >= self.view.size, jnp.cumsum(self.extra)
        q = jnp.maximum(positions - self.view.size, 0)
        c = jnp.minimum(jnp.sum(q[:, None] >= ends, 1, dtype=jnp.int32), len(ends) - 1)  # searchsorted fails inside of a shard_map
        k = jax.vmap(self._candidate)(c, q - (ends - self.extra)[c])
        mine = jnp.where(self.number[c] > 0, self.plan.near, 0) if self.plan.around else jnp.iinfo(jnp.int32).max
        seed = self.order[(jnp.cumsum(self.number) - self.number)[c] + k % jnp.maximum(self.number[c], 1)]
        batch = self.view.take(jnp.where(new, seed, positions), mask)
        z = jnp.where(mask[:, None], self.embed(batch), 0)
        if self.plan.around:
            whose = self.others[c, jnp.maximum(k - mine, 0) // self.plan.around]
            z = jnp.where((new & (k >= mine))[:, None], self.means[whose, c], z)
        e = jax.vmap(lambda c, k: jax.random.normal(self._key(c, k), z.shape[1:], z.dtype))(c, k)
        noise = jnp.take_along_axis(jnp.einsum("bm,cdm->bcd", e, self.roots), c[:, None, None], 1)[:, 0]
        return {"z": z + jnp.where(new[:, None], noise, 0), "y": jnp.where(new, c, batch["y"]), "mask": mask}

    def _candidate(self, c: jax.Array, j: jax.Array) -> jax.Array:
        if not self.plan.around:
            return j
        return keys.shuffle(keys.purpose(jax.random.fold_in(self.key, c), "which"), j, self.candidates[c])

    def _key(self, c: jax.Array, k: jax.Array) -> Key:
        return jax.random.fold_in(jax.random.fold_in(self.key, c), k)


def augmented(view: View, embed: Callable[[Batch], jax.Array], key: Key, plan: Plan, roots: jax.Array, means: jax.Array, numbers: jax.Array,
              client: jax.Array) -> Augmented:
    """The client's features with generated ones.

    Args:
      view: of the client's examples;  embed: (batch) -> features [B, F].
      key: of what is generated, the same in all rounds.
      roots: [C, F, F], what noise is multiplied by.
      means, numbers: [N, C, F] and [N, C], of all clients' classes; not looked at with plan.around = 0.
      client: which one this is.
    """
    batch, classes = view.whole(), len(roots)
    label = jnp.where(batch["mask"], batch["y"], classes).astype(jnp.int32)
    order = jnp.argsort(label, stable=True).astype(jnp.int32)
    number = jnp.sum(label[:, None] == jnp.arange(classes), 0, dtype=jnp.int32)
    if plan.around:
        there = (numbers > 0) & (jnp.arange(len(numbers)) != client)[:, None]
        others = jnp.argsort(~there.T, axis=1, stable=True).astype(jnp.int32)
        candidates = jnp.where(number > 0, plan.near, 0) + plan.around * jnp.sum(there, 0, dtype=jnp.int32)
    else:
        others, candidates = jnp.zeros((classes, 1), jnp.int32), jnp.where(number > 0, plan.target, 0)
    extra = jnp.where(view.size > 0, jnp.clip(plan.target - number, 0, candidates), 0)
    return Augmented(view, embed, key, plan, roots, means, others, order, number, extra, candidates)
