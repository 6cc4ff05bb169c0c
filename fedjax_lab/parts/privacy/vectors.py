"""What differential privacy does to one change: its norm is bounded, its client counts like any other, and noise is drawn."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import rules, tree
from fedjax_lab.types import Key, Method, Phase, Result, Streaming, Tree

FIELD = "model"


def bounded(result: Result, clip: Any, order: int = 2) -> tuple[Result, jax.Array]:
    """The result with a change of at most this norm (2 or 1) over all its leaves and a weight of 1 for it, and whether it was longer."""
    change = result.upload[FIELD]
    norm = optax.tree.norm(change, order)
    longer = norm > clip
    weight = result.weight if isinstance(result.weight, Mapping) else dict.fromkeys(result.upload, result.weight)
    return result._replace(upload={**result.upload, FIELD: tree.scale(jnp.where(longer, clip / norm, 1.0), change)}, weight={**weight, FIELD: 1.0},
                           metrics={**result.metrics, "clipped": longer}), longer


def noised(key: Key, values: Tree, deviation: Any, draw: Any = jax.random.normal) -> Tree:
    """The values with independent noise of this scale, standard normal by default, the same on any number of devices."""
    leaves, structure = jax.tree.flatten(values)
    drawn = (draw(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves))
    return jax.tree.unflatten(structure, [x + deviation * n for x, n in zip(leaves, drawn)])


def average(cohort: int) -> Streaming:
    """The sum over the number of clients expected, whoever came."""
    total = rules.total()
    return total._replace(finish=lambda acc: jax.tree.map(lambda x: x * (1 / jnp.asarray(cohort, x.dtype)), total.finish(acc)))


def alone(name: str, method: Method, noise: float, clip: float) -> Phase:
    """The method's only exchange, where a mechanism `name` may put noise on the sum of its uploads.

    Raises:
      ValueError: there are several, something comes between the clients and the sum, or noise follows an infinite clip.
    """
    if len(method.exchanges) != 1:
        raise ValueError(f"'{method.info.name}' has several exchanges in a round, and epsilon is for one")
    if math.isinf(clip) and noise:
        raise ValueError(f"option 'clip' of '{name}': inf needs noise=0, since noise follows clip; noise is {noise}")
    (phase,) = method.exchanges
    if phase.up or FIELD in phase.aggregate:
        raise ValueError(f"nothing may come between the clients' clipping and the server's noise, and '{method.info.name}' has a wire or a rule for "
                         "the uploads; leave wire_up and aggregator out, or choose local-dp")
    return phase


__all__ = ["FIELD", "alone", "average", "bounded", "noised"]
