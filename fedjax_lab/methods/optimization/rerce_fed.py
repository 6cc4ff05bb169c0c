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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_lab import tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import heard, mass, weigh
from fedjax_lab.parts.once import once, unchanged
from fedjax_lab.parts.solvers.quadratic import quadratic
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import ClientData, Key, Method, Result, Stacked, Task, Tree

CARD = {"family": "optimization", "paper": "Noise-Robust and Resource-Efficient ADMM-based Federated Learning", "year": 2025, "stateful": True,
        "refuses": {"server": "its model is the mean of all that is stored"}}
LIKE = {"sends": ("params",), "down": {"params": known()}}  # the structure of the model, at no cost


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


def _method(local: Callable, serve: Callable, server: Callable, **more: Any) -> Method:
    """What both have alike: blank rows at first, one step of a client with examples, and w_k as its own model."""

    def blank(params):
        flat = ravel_pytree(params)[0]
        return Local(0 * flat, jnp.zeros((flat.size, flat.size), flat.dtype), 0 * flat)

    more["personal"] = lambda key, server, row, data: ravel_pytree(server.params)[1](row.w)
    return stateful(local, serve, server, blank, steps=lambda size: jnp.minimum(size, 1), **more)


def _opened(name: str, key: Key, task: Task, params: Tree, data: ClientData, rho: Any, weight: Any) -> Local:
    """The row at the start (2), with J_k as in (1): a sum where F_k is a mean."""
    f = quadratic(name, key, task, params, data)  # (1)
    nothing = jnp.zeros_like(f.linear)
    return Local(f.proximal(weight * data.size, rho, nothing), f.pull(weight * data.size, rho), nothing)


@method(**CARD)
def rerce_fed(task: Task, work: Work, *, rho: Positive = 1.0, weight: Positive = 1e4) -> Method:
    """Consensus ADMM with the dual eliminated, the sampled clients alone at work.

    Args:
      rho: penalty on the distance from consensus.
      weight: of an example's squared error, one over the variance of the observations.
    """

    def start(key, message, row, data):
        return Result({}, 0.0, _opened("rerce-fed", key, task, message["params"], data, rho, weight))

    def local(key, message, row, data):
        s, shape = ravel_pytree(message["model"])
        w = jnp.where(data.clock == 0, row.w, row.drawn(s))  # (3)
        loss = task.loss(shape(w), data.train.whole(), key)[0]
        return Result({"model": shape(w)}, weigh("uniform", data), row._replace(w=w), metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        return tree.select(heard(cohort) > 0, Pair(aggregate["model"], server.params), server)

    base = _method(local, serve, lambda params, census: Pair(*[tree.zeros_like(params)] * 2),
                   broadcast=lambda server, client, clock: {"model": tree.sub(tree.scale(2, server.params), server.previous)})
    return base._replace(phases=(once(base, start, **LIKE), base.phase()))


@method(**CARD)
def rerce_fed_clu(task: Task, work: Work, *, rho: Positive = 1.0, weight: Positive = 1e4) -> Method:
    """Consensus ADMM with the dual eliminated, where clients that are not sampled go on with what they received last.

    Args:
      rho: penalty on the distance from consensus.
      weight: of an example's squared error, one over the variance of the observations.
    """

    def start(key, message, row, data):
        row, shape = _opened("rerce-fed-clu", key, task, message["params"], data, rho, weight), ravel_pytree(message["params"])[1]
        return Result({"model": shape(2 * row.w)}, weigh("uniform", data), row)

    def local(key, message, row, data):
        received, shape = ravel_pytree(message["model"])  # (4)
        w = row.drawn(received)  # (5)
        upload, loss = {"model": shape(2 * w - row.w)}, task.loss(shape(w), data.train.whole(), key)[0]
        return Result(upload, weigh("uniform", data), row._replace(w=w, received=received), metrics={"loss": loss})

    def go_on(key, message, row, data):
        return Result({}, 0.0, row._replace(w=jnp.where(data.present, row.w, row.drawn(row.received))))  # (5)

    def serve(key, server, aggregate, cohort):
        at = jnp.where(cohort.mask & (cohort.size > 0), cohort.ids, cohort.clients)
        cache = jax.tree.map(lambda c, new: c.at[at].set(new, mode="drop"), server.cache, aggregate["model"])
        return server._replace(params=jax.tree.map(lambda c: jnp.sum(c, 0) / server.members, cache), cache=cache)  # (6)

    def server(params, census):
        cache = jax.tree.map(lambda x: jnp.zeros((census.clients, *x.shape), x.dtype), params)
        return Cached(tree.zeros_like(params), cache, mass("uniform", census))

    base = _method(local, serve, server, aggregate={"model": Stacked(lambda stack, weights, cohort: stack)})
    exchange = base.phase(when=lambda key, clock: clock > 0)
    rest = exchange._replace(local=go_on, broadcast=lambda server, client, clock: {}, serve=unchanged, everyone=True)
    return base._replace(phases=(once(base, start, serve=serve, aggregate=base.aggregate, **LIKE), exchange, rest))
