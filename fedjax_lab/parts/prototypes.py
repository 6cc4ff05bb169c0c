"""Classes told apart by the nearest mean of their embeddings, and encoders trained for that in episodes.

    c_j the mean embedding of the support of class j;   the class of q is argmin_j ||q - c_j||^2   (Snell, Swersky, Zemel, NeurIPS 2017)
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts import examples
from fedjax_lab.types import Key

NEVER = 1e30  # whose exponential is zero, with a minus


class Prototypes(NamedTuple):
    """The mean [C, d] and the number, float32 [C], of the embeddings of each class so far."""

    mean: jax.Array
    number: jax.Array

    def merged(self, mean: jax.Array, number: jax.Array) -> Prototypes:
        """With `number` [C] more embeddings of this mean [C, d]: n' = n + b, P <- P + (b / n') (m - P)."""
        total = self.number + number
        return Prototypes(self.mean + (number / jnp.maximum(total, 1))[:, None] * (mean - self.mean), total)

    def nearness(self, z: jax.Array) -> jax.Array:
        """-||z - P_j||^2 [B, C] for z [B, d]; classes without an example are farther away than all others."""
        far = jnp.sum((z[:, None] - self.mean) ** 2, -1)
        return -jnp.where(self.number > 0, far, jnp.max(jnp.where(self.number > 0, far, 0), 1, keepdims=True) + 10)


class Episodes(NamedTuple):
    """ways: classes in an episode, fewer where there are fewer;  shots, queries: examples of each, fewer where it has fewer."""

    ways: int
    shots: int
    queries: int

    def loss(self, key: Key, embed: Callable[[Mapping[str, jax.Array]], jax.Array], labeled: Mapping[str, jax.Array], classes: int) -> jax.Array:
        """The mean cross entropy of the queries of a random episode, whose logits are -||q - c_j||^2.

        Args:
          key: draws the classes, and the examples of each without repetition.
          embed: (batch) -> [B, d].
          labeled: {field: [P, ...]}, with labels "y" [P] below `classes`.
        """
        y, width = labeled["y"], min(self.shots + self.queries, len(labeled["y"]))
        score, place = (jax.random.uniform(keys.purpose(key, what), (k,)) for what, k in (("classes", classes), ("examples", len(y))))
        present = jnp.zeros(classes, bool).at[y].set(True)
        best, chosen = jax.lax.top_k(jnp.where(present, score, -1), min(self.ways, classes))
        drawn, rows = jax.lax.top_k(jnp.where(y == chosen[:, None], place, -1), width)
        taken = (drawn >= 0) & (best >= 0)[:, None]
        z = embed({k: v[rows.ravel()] for k, v in labeled.items()}).reshape(*rows.shape, -1)
        number = jnp.sum(taken[:, :self.shots], 1)
        centers = jnp.sum(jnp.where(taken[:, :self.shots, None], z[:, :self.shots], 0), 1) / jnp.maximum(number, 1)[:, None]
        said = jnp.where(number > 0, Prototypes(centers, number).nearness(z[:, self.shots:].reshape(-1, z.shape[-1])), -NEVER)
        own = jnp.repeat(jnp.arange(len(chosen)), max(0, width - self.shots))
        return examples.mean(-jnp.take_along_axis(jax.nn.log_softmax(said), own[:, None], 1)[:, 0], taken[:, self.shots:].ravel())
