"""PGFed: every client descends on its own mixture of all clients' losses, the others' by their linear models.

Luo, Mendieta, Chen, Wu, "PGFed: Personalize Each Client's Global Objective for Federated Learning", ICCV 2023, and PGFedMo ibid.

    (1)  client i minimizes f_i(y) + mu sum_j a_ij [f_j(y_j) + <g_j, y - y_j>] over the last cohort P, from y = x^t
    (2)  A_i <- (1 - b) mu sum_{j in P} a_ij g_j + b A_i                        b = 0, in PGFedMo 0.5
    (3)  a_ij <- max(0, a_ij - lam (mu c_j + <gbar, y>)), y <- y - lr (grad f_i(y; b) + A_i)          gbar = mu / |P| sum_{j in P} g_j
    (4)  afterwards g_i = grad f_i(y_i) and c_i = f_i(y_i) - <g_i, y_i>, on all examples
    (5)  x^{t+1} = sum_i n_i y_i / sum_i n_i                                    client i is evaluated with its last y_i

Keeps: a >= 0; the rows of clients that do not take part, and all of them with lam = 0, are as they were.
Reduces to: FedAvg with mu = 0, whatever a is.
Departs: the slope of (1) in a_ij has <g_j, y> in place of <gbar, y>; gbar is the code's, which saves sending every g_j, and exact=true has
the slope. a_ij starts at 1 / |P| when it is first used. The server holds a row of every client for g, c and a; scalars go for all of them.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, gradient
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.gram import combined, products
from fedjax_lab.parts.oracles.directions import corrected, descend_with, full_loss_and_gradient
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "PGFed: Personalize Each Client's Global Objective for Federated Learning"
UNUSED = -1.0


class Server(NamedTuple):
    """params: x.  g: tree [N, ...].  c: [N].  alpha: [N, N], UNUSED where a client never met another.  last: bool [N], who is in P."""

    params: Tree
    g: Tree
    c: jax.Array
    alpha: jax.Array
    last: jax.Array


class Row(NamedTuple):
    """theta: the client's last y.  A: its last A."""

    theta: Tree
    A: Tree


@method(family="personalization", paper=PAPER, year=2023, stateful=True, epochs=5, client_optimizer="momentum:0.9")
def pgfed(task: Task, work: Work, *, mu: NonNegative = 0.1, lam: NonNegative = 0.01, momentum: Share = 0.0, exact: bool = False,
          weighting: Weighting = "examples") -> Method:
    """FedAvg whose clients also descend on linear models of the others' losses, with weights that they learn.

    Args:
      mu: weight of the others' losses.
      lam: rate of the weights of single others.
      momentum: b, how much of the old direction towards the others stays; 0.5 is PGFedMo.
      exact: learn weights along the exact slope, for which the gradients of all others are sent.
      weighting: clients count by their examples, or all alike.
    """

    def broadcast(server, client, clock):
        count = jnp.maximum(jnp.sum(server.last), 1)
        alpha = server.alpha[client]
        alpha = jnp.where(server.last & (alpha < 0), 1 / count, alpha)
        of_all = {"g": server.g} if exact else {"mean": combined(mu / count * server.last, server.g)}
        own = combined(mu * jnp.where(server.last, alpha, 0), server.g)
        return {"model": server.params, "own": own, "c": server.c, "alpha": alpha, "last": server.last, **of_all}

    def local(key, message, row, data):
        x, c, last = message["model"], message["c"], message["last"]
        A = tree.axpy(momentum, row.A, tree.scale(1 - momentum, message["own"]))  # (2)

        def direction(key, y, alpha, batch):
            loss, v, stats = corrected(gradient(task), A)(key, y, batch)
            slope = mu * (c + products(message["g"], y)) if exact else mu * c + tree.vdot(message["mean"], y)
            return loss, v, stats, jnp.where(last, jnp.maximum(alpha - lam * slope, 0), alpha)  # (3)

        y, alpha, loss = descend_with(batches(key, data, work), x, message["alpha"], direction, work.optimizer)  # (1)
        value, g = full_loss_and_gradient(keys.purpose(key, "full"), task, y, data, work)
        once = weigh("uniform", data)
        upload = {"model": tree.sub(y, x), "g": g, "c": value - tree.vdot(g, y), "alpha": alpha}  # (4)
        weight = {"model": weigh(weighting, data), "g": once, "c": once, "alpha": once}
        return Result(upload, weight, Row(y, A), metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        there = aggregate["c"].weights > 0
        at = jnp.where(there, cohort.ids, cohort.clients)

        def put(old, new):
            return old.at[at].set(new.uploads, mode="drop")

        g = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), server.g, aggregate["g"].uploads)
        last = jnp.zeros_like(server.last).at[at].set(True, mode="drop")
        new = Server(tree.add(server.params, aggregate["model"]), g, put(server.c, aggregate["c"]), put(server.alpha, aggregate["alpha"]), last)  # (5)
        return tree.select(jnp.any(there), new, server)

    def init_server(key, params, census):
        n = census.clients
        g = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), params)
        return Server(params, g, jnp.zeros(n), jnp.full((n, n), UNUSED), jnp.zeros(n, bool))

    return Method(local, init_server=init_server, init_client=lambda key, params, facts: Row(params, tree.zeros_like(params)), broadcast=broadcast,
                  serve=serve, aggregate={"g": together(), "c": together(), "alpha": together()}, steps=work.steps,
                  deploy=lambda server: server.params, personal=lambda key, server, row, data: row.theta)
