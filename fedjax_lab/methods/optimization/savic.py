"""SAVIC: local methods with adaptivity via scaling.

Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov, Beznosikov, "Local Methods with Adaptivity via Scaling", Russian
Mathematical Surveys 2024.

    (1)  H = g                  rules adam and rmsprop, g = grad F_i(x^t), on all of client i's examples
         H = z * (grad^2 F_i(x^t) z)        rule oasis, z random signs; its mean is the diagonal of the Hessian
    (2)  H <- sum_i p_i H_i     scaling = global; with scaling = local every client keeps a D of its own H_i
    (3)  D^2 <- b_t D^2 + (1 - b_t) H^2     adam b_t = (beta - beta^{t+1}) / (1 - beta^{t+1}), rmsprop b_t = beta
         D <- beta D + (1 - beta) H         oasis
    (4)  D^ = max{alpha, |D|}, or |D| + alpha
    (5)  y <- y - lr grad F(y; b) / D^      K_i steps from y = x^t, D^ frozen
    (6)  x^{t+1} = sum_i p_i y_i

Keeps: D^ >= alpha; D changes when the clients are synchronized and never between.
Reduces to: Local SGD (FedAvg, uniform) with lr / alpha for a very large alpha.
Departs: (1) takes all examples in place of a batch. t counts the renewals of that D, so that a client's own starts when it first takes
part. D_0, which the paper leaves open, is 0 for adam (whose b_0 = 0 makes D_1 = |H|) and rmsprop, and the first H for oasis. Global
scaling takes an exchange of its own, in which H goes up before D comes down; local momentum is the client_optimizer's. Clients may be
sampled, where the paper has them all.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, heard, weigh
from fedjax_lab.parts.oracles.directions import full_gradient
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Key, Method, Phase, Result, Task, Tree

PAPER = "Local Methods with Adaptivity via Scaling"


class Scaling(NamedTuple):
    """d: the scaling D.  renewals: int32, how often it was renewed, the t of (3)."""

    d: Tree
    renewals: jax.Array


class Scaled(NamedTuple):
    """params: the model x.  scaling: the server's, () where every client has its own."""

    params: Tree
    scaling: Tree


def _signs(key: Key, like: Tree) -> Tree:
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten([jax.random.rademacher(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)])


@method(family="optimization", paper=PAPER, year=2024)
def savic(task: Task, work: Work, *, rule: Literal["adam", "rmsprop", "oasis"] = "adam", scaling: Literal["global", "local"] = "global",
          beta: Share = 0.999, alpha: Positive = 1e-2, floor: Literal["max", "add"] = "max", weighting: Weighting = "uniform") -> Method:
    """Local SGD under a diagonal scaling that is renewed when the clients synchronize.

    Args:
      rule: squared gradients as in Adam or RMSProp, or the curvature as in OASIS.
      scaling: one for all, from the mean statistic, or one per client, from its own.
      beta: share of the old scaling that stays.
      alpha: least scaling, 1e-8 to 1e-2; choose it together with lr, since steps are up to lr / alpha.
      floor: whether the scaling is the larger of alpha and |D|, or their sum.
      weighting: clients count by their examples, or all alike.
    """

    def statistic(key, x, data):  # (1)
        def at(x):
            return full_gradient(key, task, x, data, work)

        if rule != "oasis":
            return at(x)
        z = _signs(keys.purpose(key, "signs"), x)
        return jax.tree.map(jnp.multiply, z, jax.jvp(at, (x,), (z,))[1])

    def renewed(old, h):  # (3)
        t = old.renewals
        power = jnp.float32(beta) ** (t + 1)
        if rule == "oasis":
            b = jnp.where(t == 0, 0, beta)
            d = jax.tree.map(lambda d, h: b * d + (1 - b) * h, old.d, h)
        else:
            b = (beta - power) / (1 - power) if rule == "adam" else beta
            d = jax.tree.map(lambda d, h: jnp.sqrt(b * d * d + (1 - b) * h * h), old.d, h)
        return Scaling(d, t + 1)

    def train(key, x, d, data):
        hat = jax.tree.map(lambda d: jnp.maximum(alpha, jnp.abs(d)) if floor == "max" else jnp.abs(d) + alpha, d)  # (4)
        inverse = jax.tree.map(jnp.reciprocal, hat)

        def direction(key, y, batch):
            loss, v, stats = gradient(task)(key, y, batch)
            return loss, jax.tree.map(jnp.multiply, v, inverse), stats

        y = descend(batches(key, data, work), x, direction, work.optimizer)  # (5)
        return {"model": tree.sub(y.params, x)}, weigh(weighting, data), y.loss

    def measure(key, message, client, data):
        return Result({"statistic": statistic(key, message["model"], data)}, weigh(weighting, data))

    def settle(key, server, aggregate, cohort):
        new = renewed(server.scaling, aggregate["statistic"])  # (2)
        return server._replace(scaling=tree.select(heard(cohort) > 0, new, server.scaling))

    def shared(key, message, client, data):
        upload, weight, loss = train(key, message["model"], message["d"], data)
        return Result(upload, weight, metrics={"loss": loss})

    def own(key, message, scaling, data):
        scaling = renewed(scaling, statistic(key, message["model"], data))
        upload, weight, loss = train(key, message["model"], scaling.d, data)
        return Result(upload, weight, scaling, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]))  # (6)

    def model(server, client, clock):
        return {"model": server.params}

    one = scaling == "global"
    exchange = Phase(own, model, {}, {}, {}, serve)
    if one:
        exchange = exchange._replace(local=shared, broadcast=lambda server, client, clock: {"model": server.params, "d": server.scaling.d})

    def unscaled(params):
        return Scaling(tree.zeros_like(params), jnp.int32(0))

    return Method(
        init_server=lambda key, params, census: Scaled(params, unscaled(params) if one else ()),
        init_client=lambda key, params, facts: () if one else unscaled(params),
        phases=(Phase(measure, model, {}, {}, {}, settle), exchange) if one else (exchange,),
        steps=work.steps,
        deploy=lambda server: server.params,
    )
