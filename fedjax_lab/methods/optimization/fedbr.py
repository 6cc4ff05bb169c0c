"""FedBR: pseudo-samples without labels against biased heads and biased features.

Guo, Tang, Lin, "FedBR: Improving Federated Learning on Heterogeneous Data via Local Learning Bias Reduction", ICML 2023.

    (1)  U, |U| = B: each item the mean of `mixed` random examples of one random client, gathered once
         mixture: in each step U is (u + x) / 2 with the batch's examples x, and q below is (1 / C + onehot(y)) / 2
    (2)  r = e^{tau1 s(D(phi(u)), D(phi_g(u)))} / (e^{tau1 s(D(phi(u)), D(phi_g(u)))} + e^{tau2 s(D(phi(u)), D(phi(x)))}),
         s the cosine, 0 for D = 0; phi the features of y, phi_g those of x^t; u and x paired row by row
    (3)  D <- D - lr gamma grad_D mean log r                                 features constant
    (4)  y <- y - lr grad[CE(b) + lam CE(head(phi(U)), q) - mu mean log r]   D constant, the one of (3); q = 1 / C
    (5)  x^{t+1} and D are the plain means of the clients' models and projectors

Keeps: D's step leaves the model alone, and the model's step leaves D alone; at the first step s(D(phi(u)), D(phi_g(u))) = 1.
Reduces to: FedAvg (uniform) with mu = lam = 0.
Departs: mixture blends the pseudo-samples of (1), where the paper takes images of another data set. phi_g runs in evaluation mode.
Examples and clients in (1) are drawn with replacement. In a batch smaller than U the other rows of U count in CE alone, as they are.
"""
from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts import split
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.once import tell
from fedjax_lab.parts.oracles.directions import cosine, descend_with
from fedjax_lab.parts.pseudo import blank, gathered
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Batch, Census, Key, Method, Result, Task, Tree

PAPER = "FedBR: Improving Federated Learning on Heterogeneous Data via Local Learning Bias Reduction"
DEPTH = 3  # layers of the projector


class Fair(NamedTuple):
    """params: the model.  projector: D.  owners: int32 [B], whose examples item j is made of.  pseudo: U [B, ...]."""

    params: Tree
    projector: Tree
    owners: jax.Array
    pseudo: jax.Array


def projector(key: Key, features: int) -> list[tuple[jax.Array, jax.Array]]:
    """D at the start: linear layers of twice the width, with ReLUs between, by He's initialization."""
    widths = itertools.pairwise([features] + [2 * features] * DEPTH)
    return [(jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (2 / a) ** 0.5, jnp.zeros(b)) for i, (a, b) in enumerate(widths)]


def project(D: Tree, z: jax.Array) -> jax.Array:
    """D(z), [B, 2 F]."""
    z = z.reshape(z.shape[0], -1)
    for i, (w, b) in enumerate(D):
        z = (jax.nn.relu(z) if i else z) @ w + b
    return z


def blended(batch: Batch, u: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u and q [C] of the mixture, halfway to the batch's examples, q by rows."""
    mask, classes = batch["mask"], q.shape[0]
    near = jnp.where(mask.reshape(-1, *[1] * (u.ndim - 1)), (u + batch["x"]) / 2, u)
    return near, jnp.where(mask[:, None], (q + jax.nn.one_hot(batch["y"], classes)) / 2, q)


@method(family="optimization", paper=PAPER, year=2023, plain_sgd="which is the projector's too")
def fedbr(task: Task, work: Work, *, mu: NonNegative = 0.5, lam: NonNegative = 1.0, gamma: NonNegative = 1.0, tau1: Positive = 2.0,
          tau2: Positive = 2.0, mode: Literal["mean", "mixture"] = "mean", mixed: Count = 10, weighting: Weighting = "uniform") -> Method:
    """FedAvg whose heads are uncertain about pseudo-samples, and whose features tell them from real ones.

    Args:
      mu: weight of the contrast between pseudo-samples and own examples.
      lam: weight of the head's uncertainty on pseudo-samples.
      gamma: weight of the projector's step.
      tau1, tau2: inverse temperatures of the two similarities.
      mode: pseudo-samples as they are, or blended with each batch.
      mixed: examples that an item is the mean of.
      weighting: clients count by their examples, or all alike.
    """
    split.demand("fedbr", task)

    def init_server(key, params, census: Census):
        split.demand_classes("fedbr", task, census)
        owners, nothing = blank("fedbr", keys.purpose(key, "owners"), task, census, work.batch_size)  # (1)
        features = int(np.prod(split.feature_shape(task, params, census)))
        return Fair(params, projector(keys.purpose(key, "projector"), features), owners, nothing)

    def local(key, message, client, data):
        x, D, U = message["model"], message["projector"], message["pseudo"]
        classes = data.counts.shape[0]

        def direction(key, y, D, batch):
            u, q = U, jnp.full(classes, 1 / classes)
            if mode == "mixture":
                u, q = blended(batch, u, q)
            pseudo = {**batch, "x": u, "mask": jnp.ones(u.shape[0], bool)}
            anchor = task.features(x, pseudo)

            def features(y):
                return task.features(y, pseudo, key), task.features(y, batch, key)

            def log_ratio(D, z_u, z_x):
                e1, e2, e3 = (project(D, z) for z in (z_u, anchor, z_x))
                each = -jax.nn.softplus(tau2 * cosine(e1, e3) - tau1 * cosine(e1, e2))  # (2)
                return jnp.sum(jnp.where(batch["mask"], each, 0)) / jnp.maximum(jnp.sum(batch["mask"]), 1)

            D = tree.axpy(-work.lr * gamma, jax.grad(log_ratio)(D, *features(y)), D)  # (3)

            def loss(y):
                (real, aux), (z_u, z_x) = task.loss(y, batch, key), features(y)
                uncertain = jnp.mean(split.label_free(task.head(y, z_u), q))
                return real + lam * uncertain - mu * log_ratio(D, z_u, z_x), (real, aux)

            (_, (real, aux)), v = jax.value_and_grad(loss, has_aux=True)(y)  # (4)
            return real, v, aux.stats, D

        y, last, loss = descend_with(batches(key, data, work), x, D, direction, work.optimizer)
        return Result({"model": tree.sub(y, x), "projector": tree.sub(last, D)}, weigh(weighting, data), metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]), projector=tree.add(server.projector, aggregate["projector"]))  # (5)

    base = stateful(local, serve, None, sends=("projector", "pseudo"), init_server=init_server, down={"pseudo": known()}, steps=work.steps)
    return base._replace(phases=(gathered(base, mixed), tell(base, "pseudo"), base.phase()))
