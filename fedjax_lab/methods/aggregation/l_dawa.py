"""L-DAWA: every layer counts by how far its direction is still that of the global model.

Rehman, Gao, Hernandez, Lane, "L-DAWA: Layer-wise Divergence Aware Weight Aggregation in Federated Self-Supervised Visual Representation
Learning", ICCV 2023.

    (1)  y <- y - lr grad F_i(y; b)                                     from y = x^t
    (2)  v_il = min(1, <y_il, x_l^t> / (||y_il|| ||x_l^t||))            for every tensor l; 1 where a norm is zero, and for scalars
    (3)  x_l^{t+1} = (1 / S) sum_i v_il y_il                            the weights are not renormalized: a layer on which clients part shrinks
    (4)  x^{t+1} = sum_i n_i y_i / sum_i n_i                            in the first `warmup` rounds

Keeps: ||x_l^{t+1}|| <= mean_i ||y_il||.
Reduces to: FedAvg (uniform) where every y_il points along x_l; nothing changes where y_i = x.
Departs: self-supervised training is the task's affair. Normalization statistics are averaged, not shrunk, as the released code does to them.
"""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import weigh
from fedjax_lab.registry import method
from fedjax_lab.spec import Range
from fedjax_lab.types import Method, Result, Task

PAPER = "L-DAWA: Layer-wise Divergence Aware Weight Aggregation in Federated Self-Supervised Visual Representation Learning"


@method(family="aggregation", paper=PAPER, year=2023)
def l_dawa(task: Task, work: Work, *, warmup: Annotated[int, Range(0)] = 3) -> Method:
    """FedAvg whose mean counts every client's layer by its cosine with the global model's.

    Args:
      warmup: rounds of FedAvg at the start.
    """

    def local(key, message, client, data):
        x = message["model"]
        end = descend(batches(key, data, work), x, gradient(task), work.optimizer)  # (1)
        warm = data.clock < warmup
        kept = jax.tree.map(lambda moves, y, x: jnp.where(warm, 1, alignment(y, x)) if moves else 1, tree.trainable(x), end.params, x)  # (2)
        aligned = jax.tree.map(jnp.multiply, kept, end.params)
        weight = jnp.where(warm, weigh("examples", data), weigh("uniform", data))
        return Result({"model": tree.sub(aligned, x)}, weight, metrics={"loss": end.loss})

    return Method(local, steps=work.steps)  # (3), (4): the mean change


def alignment(y: jax.Array, x: jax.Array) -> jax.Array:
    """v of (2) for one tensor, a scalar."""
    norms = jnp.linalg.norm(y) * jnp.linalg.norm(x)
    cosine = jnp.sum(y * x) / jnp.where(norms > 0, norms, 1)
    return jnp.where((norms > 0) & (x.ndim > 0), jnp.minimum(cosine, 1), 1)
