"""MOON: model-contrastive federated learning.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021.

    (1)  l = -log[ e^{s(z, z_g) / tau} / (e^{s(z, z_g) / tau} + e^{s(z, z_p) / tau}) ]       s the cosine, z the features of y,
         z_g those of x^t, z_p those of the client's previous local model; z_g and z_p are constants
    (2)  y <- y - lr grad[F(y; b) + mu mean_b l]                                             K_i steps from y = x^t
    (3)  the client's previous model <- y_i                                                  for i in S
    (4)  x^{t+1} = sum_i n_i y_i / sum_i n_i

Keeps: where z_p = z_g, l = log 2 and its gradient is zero: so it is when a client takes part for the first time.
Reduces to: FedAvg with mu = 0.
Departs: takes the features the model has, where the paper adds a projection head of two layers (256) to it: give the model one. The frozen
models run in evaluation mode, without dropout and with their own normalization statistics.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.oracles.directions import cosine
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Model-Contrastive Federated Learning"


class Previous(NamedTuple):
    """A client's last local model, and whether there is one."""

    model: Tree
    seen: jax.Array


@method(family="optimization", paper=PAPER, year=2021, stateful=True)
def moon(task: Task, work: Work, *, mu: NonNegative = 1.0, tau: Positive = 0.5, weighting: Weighting = "examples") -> Method:
    """FedAvg whose local features stay near the global model's and away from the client's previous model's.

    Args:
      mu: weight of the contrastive loss; 0.1 to 10.
      tau: temperature.
      weighting: clients count by their examples, or all alike.
    """
    if task.features is None:
        raise ValueError(f"'moon' needs a model with features; task '{task.name}' has none: choose a model with a feature/head split")

    def local(key, message, previous, data):
        x = message["model"]
        before = tree.select(previous.seen, previous.model, x)

        def loss(y, batch, key):
            value, aux = task.loss(y, batch, key)
            z = task.features(y, batch, key)
            z_g, z_p = (jax.lax.stop_gradient(task.features(frozen, batch)) for frozen in (x, before))
            each = jax.nn.softplus((cosine(z, z_p) - cosine(z, z_g)) / tau)  # (1)
            contrast = jnp.sum(jnp.where(batch["mask"], each, 0)) / jnp.maximum(jnp.sum(batch["mask"]), 1)
            return value + mu * contrast, aux

        def direction(key, y, batch):
            (value, aux), v = jax.value_and_grad(loss, has_aux=True)(y, batch, key)
            return value, v, aux.stats

        y = descend(batches(key, data, work), x, direction, work.optimizer)  # (2)
        row = Previous(y.params, jnp.ones((), bool))  # (3)
        return Result({"model": tree.sub(y.params, x)}, weigh(weighting, data), row, metrics={"loss": y.loss})

    def init_client(key, params, facts):
        return Previous(params, jnp.zeros((), bool))

    return Method(local, init_client=init_client, steps=work.steps)  # (4) is the mean change, which every server adds by default
