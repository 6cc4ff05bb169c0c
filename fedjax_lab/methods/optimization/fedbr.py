"""FedBR: pseudo-samples without labels against biased heads and biased features.

Guo, Tang, Lin, "FedBR: Improving Federated Learning on Heterogeneous Data via Local Learning Bias Reduction", ICML 2023.

    (1)  U, |U| = B: each item the mean of `mixed` random examples of one random client, gathered once
         mixture: in each step U is (u + x) / 2 with the batch's examples x, and q below is (1 / C + onehot(y)) / 2
    (2)  r = e^{tau1 s(D(phi(u)), D(phi_g(u)))} / (e^{tau1 s(D(phi(u)), D(phi_g(u)))} + e^{tau2 s(D(phi(u)), D(phi(x)))}),
         s the cosine, phi the features of y, phi_g those of x^t, u and x paired row by row
    (3)  D <- D - lr gamma grad_D mean log r                                 features constant
    (4)  y <- y - lr grad[CE(b) + lam CE(head(phi(U)), q) - mu mean log r]   D constant, the one of (3); q = 1 / C
    (5)  x^{t+1} and D are the plain means of the clients' models and projectors

Keeps: D's step leaves the model alone, and the model's step leaves D alone; at the first step s(D(phi(u)), D(phi_g(u))) = 1.
Reduces to: FedAvg (uniform) with mu = lam = 0.
Departs: mixture blends the pseudo-samples of (1), where the paper takes images of another data set. phi_g runs in evaluation mode.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts import split
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.oracles.directions import cosine, descend_with
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.half import known, rows_unless_zero
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Census, Method, Result, Task, Tree

PAPER = "FedBR: Improving Federated Learning on Heterogeneous Data via Local Learning Bias Reduction"
DEPTH = 3  # layers of the projector


class Fair(NamedTuple):
    """params: the model.  projector: D.  owners: int32 [B], whose examples item j is made of.  pseudo: U [B, ...]."""

    params: Tree
    projector: Tree
    owners: jax.Array
    pseudo: jax.Array


def _projector(key, features: int) -> list[tuple[jax.Array, jax.Array]]:
    widths = [features] + [2 * features] * DEPTH
    return [(jax.random.normal(jax.random.fold_in(key, i), (a, b)) * np.sqrt(2 / a), jnp.zeros(b)) for i, (a, b) in enumerate(zip(widths, widths[1:]))]


def _project(layers, z: jax.Array) -> jax.Array:
    z = z.reshape(z.shape[0], -1)
    for i, (w, b) in enumerate(layers):
        z = (jax.nn.relu(z) if i else z) @ w + b
    return z


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
        if not jnp.issubdtype(census.example["x"].dtype, jnp.floating):
            raise ValueError(f"'fedbr' needs inputs that can be averaged; those of task '{task.name}' are {census.example['x'].dtype}")
        longest = max(1, int(np.max(census.size)))
        rows = longest if work.batch_size == "full" else min(work.batch_size, longest)
        there = jnp.asarray(np.flatnonzero(census.size), jnp.int32)
        owners = there[jax.random.randint(keys.purpose(key, "owners"), (rows,), 0, there.shape[0])]
        features = int(np.prod(split.feature_shape(task, params, census)))
        return Fair(params, _projector(keys.purpose(key, "projector"), features), owners, census.batch(rows)["x"])

    def give(key, message, client, data):
        def item(key, mine):
            positions = jax.random.randint(key, (mixed,), 0, jnp.maximum(data.size, 1))
            x = data.train.take(positions, jnp.ones(mixed, bool))["x"]
            return jnp.where(mine, jnp.mean(x, 0), 0)

        mine = message["owners"] == data.id
        return Result({"pseudo": jax.vmap(item)(jax.random.split(key, mine.shape[0]), mine)}, 1.0)  # (1)

    def local(key, message, client, data):
        x, plan, pseudo = message["model"], batches(key, data, work), message["pseudo"]

        def direction(key, y, D, batch):
            outputs = jax.eval_shape(task.apply, y, batch)
            classes, mask = outputs.shape[-1], batch["mask"]
            u, q = pseudo, jnp.full(classes, 1 / classes)
            if mode == "mixture":
                u = jnp.where(mask.reshape(-1, *[1] * (u.ndim - 1)), (u + batch["x"]) / 2, u)
                q = jnp.where(mask[:, None], (q + jax.nn.one_hot(batch["y"], classes)) / 2, q)
            unlabelled = {**batch, "x": u, "mask": jnp.ones_like(mask)}
            anchor = task.features(x, unlabelled)

            def log_ratio(D, z_u, z_x):
                e1, e2, e3 = (_project(D, z) for z in (z_u, anchor, z_x))
                each = -jax.nn.softplus(tau2 * cosine(e1, e3) - tau1 * cosine(e1, e2))  # (2)
                return jnp.sum(jnp.where(mask, each, 0)) / jnp.maximum(jnp.sum(mask), 1)

            still = [jax.lax.stop_gradient(task.features(y, b, key)) for b in (unlabelled, batch)]
            D = tree.axpy(-work.lr * gamma, jax.grad(log_ratio)(D, *still), D)  # (3)

            def loss(y):
                real, aux = task.loss(y, batch, key)
                z_u, z_x = (task.features(y, b, key) for b in (unlabelled, batch))
                uncertain = jnp.mean(split.label_free(task.head(y, z_u), q))
                return real + lam * uncertain - mu * log_ratio(D, z_u, z_x), (real, aux)  # (4)

            (_, (real, aux)), v = jax.value_and_grad(loss, has_aux=True)(y)
            return real, v, aux.stats, D

        y, D, loss = descend_with(plan, x, message["projector"], direction, work.optimizer)
        upload = {"model": tree.sub(y, x), "projector": tree.sub(D, message["projector"])}
        return Result(upload, weigh(weighting, data), metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]),  # (5)
                               projector=tree.add(server.projector, aggregate["projector"]))

    method = stateful(local, serve, None, sends=("projector", "pseudo"), init_server=init_server, down={"pseudo": known()}, steps=work.steps)
    gather = method.phase(
        local=give, broadcast=lambda server, client, clock: {"owners": server.owners}, everyone=True, when=lambda key, clock: clock == 0,
        aggregate={"pseudo": rules.total()}, up={"pseudo": rows_unless_zero()}, down={},
        serve=lambda key, server, aggregate, cohort: server._replace(pseudo=aggregate["pseudo"].astype(server.pseudo.dtype)),
    )
    tell = method.phase(  # U goes out once, to everybody
        local=lambda key, message, client, data: Result({}, 0.0), broadcast=lambda server, client, clock: {"pseudo": server.pseudo},
        down={}, serve=lambda key, server, aggregate, cohort: server, everyone=True, when=lambda key, clock: clock == 0,
    )
    return method._replace(phases=(gather, tell, method.phase()))
