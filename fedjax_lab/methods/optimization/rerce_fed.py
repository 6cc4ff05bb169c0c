"""RERCE-Fed and RERCE-Fed-CLU: consensus ADMM for least squares without duals, for few clients a round and noisy links.

Lari, Arablouei, Gogineni, Werner, "Noise-Robust and Resource-Efficient ADMM-based Federated Learning", Signal Processing 2025.

    (1)  J_k(w) = weight sum_j (y_j - x_j w)^2 over the rows of client k        grad J_k(w) = H_k w - b_k
    (2)  B_k = (H_k + rho I)^{-1},   w_k = B_k b_k at the start,   w_0 = 0
    RERCE-Fed, for the sampled clients, with s_n = 2 w_n - w_{n-1} formed once at the server:
    (3)  w_k <- (I - rho B_k) w_k + rho B_k s_n                                w_{n+1} = mean_S w_k
    RERCE-Fed-CLU, continual local updates:
    (4)  w~_k = w_n for the sampled clients; the others keep theirs, zero at first
    (5)  w_k' = (I - rho B_k) w_k + rho B_k w~_k,   s_k = 2 w_k' - w_k         for ALL clients
    (6)  w_{n+1} = mean of the s_k received last over ALL N clients, s_k = 2 w_k from all of them at the start

Keeps: sum_k B_k^{-1} w_k - rho N w_{n-1} is constant over (3) with all clients.
Reduces to: both to consensus ADMM with its duals, without noise and with all clients: the same w_k.
Departs: noise on the links is a matter of the wires (awgn) and not of this file. Round 0 is the start: in RERCE-Fed the sampled
clients send the w_k of (2). The field "model" of an upload is w_k or s_k itself, since its change would carry the noise of the
downlink up again. The loss may be that of any task that is quadratic in the parameters; the options of local training have no part.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_lab import tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import heard, mass, weigh
from fedjax_lab.parts.solvers.quadratic import quadratic
from fedjax_lab.parts.wires.half import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Stacked, Task, Tree

CARD = {"family": "optimization", "paper": "Noise-Robust and Resource-Efficient ADMM-based Federated Learning", "year": 2025, "stateful": True,
        "refuses": {"server": "its model is the mean of all that is stored"}}
ONCE = {"everyone": True, "when": lambda key, clock: clock == 0, "down": {"like": known()},  # the structure of the model, at no cost
        "broadcast": lambda server, client, clock: {"like": server.params}}


class Local(NamedTuple):
    """A client's row, with d parameters: w [d];  pull [d, d], rho B_k;  received [d], the w~ of (4)."""

    w: jax.Array
    pull: jax.Array
    received: jax.Array

    def drawn(self, s: jax.Array) -> jax.Array:
        """(I - rho B) w + rho B s."""
        return self.w + self.pull @ (s - self.w)


class Pair(NamedTuple):
    """params: w_n.  previous: w_{n-1}."""

    params: Tree
    previous: Tree


class Cached(NamedTuple):
    """params: w_n.  cache: [N, ...], the s_k received last.  members: float32, clients with examples."""

    params: Tree
    cache: Tree
    members: jax.Array


def _blank(key, params, facts) -> Local:
    flat = ravel_pytree(params)[0]
    return Local(0 * flat, jnp.zeros((flat.size, flat.size), flat.dtype), 0 * flat)


def _opened(name, key, task, params, data, rho, weight) -> Local:
    """The row at the start (2)."""
    f = quadratic(name, key, task, params, data)
    scale = weight * data.size  # (1): J_k is a sum where F_k is a mean
    inverse = jnp.linalg.inv(scale * f.hessian + rho * jnp.eye(f.linear.size, dtype=f.linear.dtype))
    return Local(inverse @ (scale * f.linear), rho * inverse, 0 * f.linear)


def _loss(key, task, params, data) -> dict[str, jax.Array]:
    return {"loss": task.loss(params, data.train.whole(), key)[0]}


def _own(key, server, row, data) -> Tree:
    return ravel_pytree(server.params)[1](row.w)


@method(**CARD)
def rerce_fed(task: Task, work: Work, *, rho: Positive = 1.0, weight: Positive = 1e4) -> Method:
    """Consensus ADMM with the dual eliminated, the sampled clients alone at work.

    Args:
      rho: penalty on the distance from consensus.
      weight: of an example's squared error, one over the variance of the observations.
    """

    def start(key, message, row, data):
        return Result({}, 0.0, _opened("rerce-fed", key, task, message["like"], data, rho, weight))

    def local(key, message, row, data):
        s, shape = ravel_pytree(message["model"])
        w = jnp.where(data.clock == 0, row.w, row.drawn(s))  # (3)
        return Result({"model": shape(w)}, weigh("uniform", data), row._replace(w=w), metrics=_loss(key, task, shape(w), data))

    def serve(key, server, aggregate, cohort):
        return tree.select(heard(cohort) > 0, Pair(aggregate["model"], server.params), server)

    method = Method(
        local, init_server=lambda key, params, census: Pair(*[tree.zeros_like(params)] * 2), init_client=_blank, serve=serve, personal=_own,
        broadcast=lambda server, client, clock: {"model": tree.sub(tree.scale(2, server.params), server.previous)},
        steps=lambda size: jnp.minimum(size, 1), deploy=lambda server: server.params,
    )
    begin = method.phase(local=start, **ONCE, serve=lambda key, server, aggregate, cohort: server)
    return method._replace(phases=(begin, method.phase()))


@method(**CARD)
def rerce_fed_clu(task: Task, work: Work, *, rho: Positive = 1.0, weight: Positive = 1e4) -> Method:
    """Consensus ADMM with the dual eliminated, where clients that are not sampled go on with what they received last.

    Args:
      rho: penalty on the distance from consensus.
      weight: of an example's squared error, one over the variance of the observations.
    """

    def start(key, message, row, data):
        row = _opened("rerce-fed-clu", key, task, message["like"], data, rho, weight)
        return Result({"model": ravel_pytree(message["like"])[1](2 * row.w)}, weigh("uniform", data), row)

    def local(key, message, row, data):
        received, shape = ravel_pytree(message["model"])
        w = row.drawn(received)  # (5)
        upload = {"model": shape(2 * w - row.w)}
        return Result(upload, weigh("uniform", data), row._replace(w=w, received=received), metrics=_loss(key, task, shape(w), data))  # (4)

    def go_on(key, message, row, data):
        return Result({}, 0.0, row._replace(w=jnp.where(data.present, row.w, row.drawn(row.received))))  # (5)

    def serve(key, server, aggregate, cohort):
        at = jnp.where(cohort.mask & (cohort.size > 0), cohort.ids, cohort.clients)
        cache = jax.tree.map(lambda c, new: c.at[at].set(new, mode="drop"), server.cache, aggregate["model"])
        return server._replace(params=jax.tree.map(lambda c: jnp.sum(c, 0) / server.members, cache), cache=cache)  # (6)

    def init_server(key, params, census):
        cache = jax.tree.map(lambda x: jnp.zeros((census.clients, *x.shape), x.dtype), params)
        return Cached(tree.zeros_like(params), cache, mass("uniform", census))

    method = Method(
        local, init_server=init_server, init_client=_blank, broadcast=lambda server, client, clock: {"model": server.params}, serve=serve,
        aggregate={"model": Stacked(lambda stack, weights, cohort: stack)}, steps=lambda size: jnp.minimum(size, 1),
        deploy=lambda server: server.params, personal=_own,
    )
    begin = method.phase(local=start, **ONCE)
    exchange = method.phase(when=lambda key, clock: clock > 0)
    rest = exchange._replace(local=go_on, broadcast=lambda server, client, clock: {}, serve=lambda key, server, aggregate, cohort: server,
                             everyone=True)
    return method._replace(phases=(begin, exchange, rest))
