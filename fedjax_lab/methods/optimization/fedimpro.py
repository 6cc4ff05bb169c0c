"""FedImpro: the head also learns from features that no client owns.

Tang, Zhang, Shi, He, Chen, Han, Chu, "FedImpro: Measuring and Improving Client Update in Federated Learning", ICLR 2024.

    (1)  z' ~ N(mu_c, sigma_c^2) for labels c that cycle over all C classes, C (floor(|b| / C) + 1) of them, constants
    (2)  y <- y - lr grad[CE(b) + w_r CE(head(z'))],  w_r = r / ramp in round r;   or (1 - w_r) CE(b) + w_r CE(head(z')), w_r <= 1
    (3)  mu_c <- (1 - omega) mu_c + omega mean_c z,  sigma_c likewise, then min(sigma_c, sigma_max), for the classes of the batch
    (4)  x^{t+1} = sum_i n_i y_i / sum_i n_i
    (5)  mu, sigma <- their plain means over S;   pooled: of the union, where client i has n_i and S has n examples of the class,
         mu = sum_i n_i mu_i / n,   sigma^2 = sum_i [(n_i - 1) sigma_i^2 + n_i (mu_i - mu)^2] / n

Keeps: z' gives no gradient to the layers below the cut; pooled, a class that nobody in S has keeps its statistics.
Reduces to: FedAvg with w_r = 0, which is round 0.
Departs: the cut is between the model's features and its head. (3) takes the features of training mode at y before the step, and a
deviation needs two examples of the class; (5) does not cap it again. The published code takes omega = min(1, F / n_c), which is 1
for wide cuts; so here.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts import split
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.oracles.directions import descend_with
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive, Share
from fedjax_lab.types import Batch, Key, Method, Result, Task, Tree

PAPER = "FedImpro: Measuring and Improving Client Update in Federated Learning"


class Statistics(NamedTuple):
    """Of the features, class by class: mean and deviation [C, F]."""

    mean: jax.Array
    deviation: jax.Array


class Shared(NamedTuple):
    """params: the model.  features: the statistics that all clients draw from."""

    params: Tree
    features: Statistics


def per_class(values: jax.Array, known: Statistics) -> jax.Array:
    """Values [C], to broadcast against the statistics."""
    return values.reshape(-1, *[1] * (known.mean.ndim - 1))


def imagined(key: Key, known: Statistics, mask: jax.Array) -> tuple[jax.Array, Batch]:
    """Features drawn beside a batch [B] with this mask, and their labels; more rows than that, masked, as the batch has padding."""
    classes = known.mean.shape[0]
    labels = jnp.arange(classes * (mask.shape[0] // classes + 1)) % classes
    z = known.mean[labels] + known.deviation[labels] * jax.random.normal(key, known.mean[labels].shape)  # (1)
    return z, {"y": labels, "mask": jnp.arange(labels.size) < classes * (jnp.sum(mask) // classes + 1)}


@method(family="optimization", paper=PAPER, year=2024)
def fedimpro(task: Task, work: Work, *, sigma_max: Positive = 0.1, ramp: Positive = 500.0, cap: bool = True,
             mix: Literal["added", "blended"] = "added", omega: Share = 1.0, statistics: Literal["plain", "pooled"] = "plain",
             noise: NonNegative = 0.0, weighting: Weighting = "examples") -> Method:
    """FedAvg whose head also learns from features drawn from class statistics that all clients share.

    Args:
      sigma_max: the largest deviation that a client keeps, and the first.
      ramp: rounds until the drawn features weigh as much as the real ones.
      cap: keep their weight at 1 from then on; blended it never exceeds 1.
      mix: their loss is added to the real one, or takes its place in part.
      omega: share of a batch's statistics in the new ones.
      statistics: of the cohort, plainly averaged, or pooled by class counts.
      noise: standard deviation of Gaussian noise on the statistics that a client sends.
      weighting: clients count by their examples, or all alike, in the model.
    """
    split.demand("fedimpro", task)

    def init_server(key, params, census):
        classes, shape = split.demand_classes("fedimpro", task, census), split.feature_shape(task, params, census)
        mean = jax.random.uniform(key, (classes, *shape))
        return Shared(params, Statistics(mean, jnp.full_like(mean, sigma_max)))

    def local(key, message, client, data):
        x, known = message["model"], Statistics(*message["features"])
        w = data.clock / ramp
        w = jnp.minimum(w, 1) if cap or mix == "blended" else w

        def direction(key, y, known, batch):
            z, drawn = imagined(keys.purpose(key, "drawn"), known, batch["mask"])

            def loss(y):
                real, aux = task.loss(y, batch, key)
                each = task.metrics(task.head(y, z), drawn)["loss"]
                other = jnp.sum(jnp.where(drawn["mask"], each, 0)) / jnp.sum(drawn["mask"])
                return (real if mix == "added" else (1 - w) * real) + w * other, (real, aux)

            (_, (real, aux)), v = jax.value_and_grad(loss, has_aux=True)(y)  # (2)
            return real, v, aux.stats, renewed(known, task.features(y, batch, key), batch)

        y, own, loss = descend_with(batches(key, data, work), x, known, direction, work.optimizer)
        upload = {"model": tree.sub(y, x), "features": told(disturbed(key, own), known, data.counts)}
        counted = per_class(data.counts, known) if statistics == "pooled" else weigh("uniform", data)
        return Result(upload, {"model": weigh(weighting, data), "features": counted}, metrics={"loss": loss})

    def renewed(known, z, batch):
        flat = z.reshape(z.shape[0], -1)
        number, mean, deviation = split.by_class(flat, batch["y"], batch["mask"], known.mean.shape[0])
        mean, deviation = (s.reshape(known.mean.shape) for s in (mean, deviation))
        there = per_class(number, known)
        mean = jnp.where(there > 0, (1 - omega) * known.mean + omega * mean, known.mean)  # (3)
        deviation = jnp.where(there > 1, (1 - omega) * known.deviation + omega * deviation, known.deviation)
        return Statistics(mean, jnp.minimum(deviation, sigma_max))

    def disturbed(key, known):
        if not noise:
            return known
        return Statistics(*(s + noise * jax.random.normal(keys.purpose(key, n), s.shape) for n, s in zip(Statistics._fields, known, strict=True)))

    def told(own, known, counts):
        """Changes, so that where nothing is heard nothing changes; pooled, of the deviation the mean square about the mean received."""
        step = own.mean - known.mean
        if statistics == "plain":
            return Statistics(step, own.deviation - known.deviation)
        return Statistics(step, per_class(1 - 1 / jnp.maximum(counts, 1), own) * own.deviation**2 + step**2)

    def serve(key, server, aggregate, cohort):
        old, change = server.features, Statistics(*aggregate["features"])
        deviation = old.deviation + change.deviation
        if statistics == "pooled":
            there = jnp.any(change.deviation > 0, range(1, change.deviation.ndim), keepdims=True)
            deviation = jnp.where(there, jnp.sqrt(jnp.maximum(change.deviation - change.mean**2, 0)), old.deviation)
        return Shared(tree.add(server.params, aggregate["model"]), Statistics(old.mean + change.mean, deviation))  # (4), (5)

    return stateful(local, serve, None, sends=("features",), init_server=init_server, steps=work.steps)
