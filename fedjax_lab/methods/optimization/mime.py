"""Mime and MimeLite: the state of a centralized optimizer, frozen while clients step.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Breaking the centralized barrier for cross-device federated learning", 2020
(NeurIPS 2021).

    (1)  c = sum_i p_i grad F_i(x^t)           over the sampled clients, each on all of its examples, p_i = n_i / sum_S n_j
    (2)  v = grad F(y; b) - grad F(x^t; b) + c, one batch b        Mime
         v = grad F(y; b)                                          MimeLite
    (3)  y <- y - lr U(v; s), K_i steps from y = x^t, with the server's s frozen
    (4)  x^{t+1} = x^t + server_lr sum_i p_i (y_i - x^t)
    (5)  s <- V(c; s)

    base       U(v; s)                                       V(c; s), all zero at first
    sgd        v
    momentum   (1 - beta) v + beta m                         m <- (1 - beta) c + beta m
    adagrad    v / (sqrt(r) + eps)                           r <- r + c^2
    adam       [(1 - beta) v + beta m] / (sqrt(r) + eps)     m as above, r <- (1 - beta2) c^2 + beta2 r; no bias correction

Keeps: s changes by (5) alone, and not in a round in which nobody is heard.
Reduces to: the base optimizer on the pooled data with one step, full batches and all clients; MimeLite on sgd is FedAvg.
Departs: nothing.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, heard, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.oracles.directions import full_gradient, gradient_at
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Breaking the centralized barrier for cross-device federated learning"
CARD = {"family": "optimization", "paper": PAPER, "year": 2020, "plain_sgd": "whose place the base optimizer takes",
        "refuses": {"server": "the base optimizer is its server's"}}
Base = Literal["sgd", "momentum", "adagrad", "adam"]
FIRST, SECOND = ("momentum", "adam"), ("adagrad", "adam")  # whose state holds such a moment


class Moments(NamedTuple):
    """s: first moment m and second moment r, () where the base optimizer has none."""

    m: Tree
    r: Tree


class Central(NamedTuple):
    """params: the model x.  s: the base optimizer's state.  c: the last mean gradient, () in MimeLite, whose clients do not get it."""

    params: Tree
    s: Moments
    c: Tree


def _blend(beta, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda n, o: (1 - beta) * n + beta * o, new, old)


def _direction(base: Base, s: Moments, v: Tree, beta, eps) -> Tree:
    """U(v; s)."""
    u = _blend(beta, v, s.m) if base in FIRST else v
    return jax.tree.map(lambda u, r: u / (jnp.sqrt(r) + eps), u, s.r) if base in SECOND else u


def _tracked(base: Base, s: Moments, c: Tree, beta, beta2) -> Moments:
    """V(c; s)."""
    m = _blend(beta, c, s.m) if base in FIRST else ()
    if base not in SECOND:
        return Moments(m, ())
    square = jax.tree.map(jnp.square, c)
    return Moments(m, tree.add(s.r, square) if base == "adagrad" else _blend(beta2, square, s.r))


def _centralized(task: Task, work: Work, corrected: bool, base: Base, beta, beta2, eps, server_lr, weighting: Weighting) -> Method:
    def server(x, census):
        zero = tree.zeros_like(x)
        return Central(x, Moments(zero if base in FIRST else (), zero if base in SECOND else ()), zero if corrected else ())

    def measure(key, message, client, data):
        x = message["model"]
        return Result({"gradient": full_gradient(key, task, x, data, work)}, weigh(weighting, data), keep=x)

    def gather(key, server, aggregate, cohort):
        return server._replace(c=aggregate["gradient"])  # (1)

    def local(key, message, client, data):
        x = data.keep if corrected else message["model"]

        def direction(key, y, batch):
            loss, v, stats = gradient(task)(key, y, batch)
            if corrected:
                v = tree.add(tree.sub(v, gradient_at(task, x, key, batch)), message["c"])  # (2)
            return loss, _direction(base, message["s"], v, beta, eps), stats

        y = descend(batches(key, data, work), x, direction, work.optimizer)  # (3)
        upload = {"model": tree.sub(y.params, x)}
        if not corrected and base != "sgd":
            upload |= measure(key, message, client, data).upload
        return Result(upload, weigh(weighting, data), metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        s = _tracked(base, server.s, server.c if corrected else aggregate.get("gradient"), beta, beta2)  # (5)
        new = server._replace(params=stepped(server_lr, aggregate["model"], server.params), s=s)  # (4)
        return tree.select(heard(cohort) > 0, new, server)

    if not corrected:
        return stateful(local, serve, server, sends=("s",), steps=work.steps)
    method = stateful(local, serve, server, steps=work.steps)
    train = method.phase(broadcast=lambda server, client, clock: {"c": server.c, "s": server.s})  # the clients have the model
    return method._replace(phases=(method.phase(local=measure, serve=gather), train))


@method(**CARD)
def mime(task: Task, work: Work, *, base: Base = "momentum", beta: Share = 0.9, beta2: Share = 0.99, eps: Positive = 1e-3,
         server_lr: Positive = 1.0, weighting: Weighting = "examples") -> Method:
    """Local steps that mimic a centralized optimizer, with its state frozen and gradients variance-reduced.

    Args:
      base: the centralized optimizer.
      beta, beta2: shares of the old first and second moment that stay.
      eps: added to the root of the second moment.
      server_lr: step of the server along the mean change.
      weighting: clients count by their examples, or all alike.
    """
    return _centralized(task, work, True, base, beta, beta2, eps, server_lr, weighting)


@method(**CARD)
def mimelite(task: Task, work: Work, *, base: Base = "momentum", beta: Share = 0.9, beta2: Share = 0.99, eps: Positive = 1e-3,
             server_lr: Positive = 1.0, weighting: Weighting = "examples") -> Method:
    """Mime without the variance reduction, in one exchange.

    Args:
      base: the centralized optimizer.
      beta, beta2: shares of the old first and second moment that stay.
      eps: added to the root of the second moment.
      server_lr: step of the server along the mean change.
      weighting: clients count by their examples, or all alike.
    """
    return _centralized(task, work, False, base, beta, beta2, eps, server_lr, weighting)
