"""Momentum, control variates and variance reduction in one recursion, of which six algorithms are the corners.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = a grad F(y; b) + beta (c - c_i) + (1 - beta) (g^t - [use_vr] grad F(x^{t-1}; b))       a = 1 with use_vr, else beta
    (2)  y <- y - lr v                                       K_i steps from y = x^t, both gradients on one batch and key
    (3)  c_i <- mean of the raw gradients grad F(y; b) of (1), for the clients that take part        [use_c]
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)             the mean of all v that were used
    (5)  c <- c + (1 / N) sum_S (c_i' - c_i)                 over all N clients [use_c]
    (6)  x^{t+1} = x^t - server_lr g^{t+1}                   server_lr = lr K, the mean of the K_i, where it is not given
    (7)  c_i^0 = grad F_i(x^0), c^0 = g^0 = (1 / N) sum_i c_i^0, asked of all N clients once, or all zero

    FedAvg       beta = 1                         SCAFFOLD       use_c, beta = 1
    FedAvg-M                                      SCAFFOLD-M     use_c
    FedAvg-M-VR  use_vr                           SCAFFOLD-M-VR  use_c, use_vr
"""
from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from fedjax_lab import rules, tree
from fedjax_lab.local import Work, batches, gradient
from fedjax_lab.parts.clients import Weighting, mean_steps, weigh
from fedjax_lab.parts.moving import moving, scaled, stepped
from fedjax_lab.parts.once import once
from fedjax_lab.parts.oracles.directions import descend_with, full_gradient, gradient_at
from fedjax_lab.parts.states import stateful
from fedjax_lab.types import Method, Result, Task, Tree

Start = Literal["zero", "gradient"]


class Drift(NamedTuple):
    """params: x^t.  g: the mean direction of the last round.  c: mean of the c_i, () without control variates.
    previous: x^{t-1}, () without variance reduction."""

    params: Tree
    g: Tree
    c: Tree
    previous: Tree


def drift_corrected(task: Task, work: Work, *, use_c: bool, use_vr: bool, beta: Any, server_lr: Any = None, start: Start = "zero",
                    weighting: Weighting = "uniform") -> Method:
    """The method of these switches.

    Args:
      task, work: what is trained, and how, by plain SGD.
      use_c, use_vr: control variates, variance reduction.
      beta: weight of the new gradient against the last direction.
      server_lr: step of the server along g, or None for lr times the mean number of steps, which averages the models.
      start: g^0, c_i^0 and c^0 are zero, or the gradients at x^0 of each client on all its examples and their mean (7).
      weighting: clients count by their examples, or all alike.
    """

    def server(x, census):
        nothing = tree.zeros_like(x)
        return Drift(x, nothing, nothing if use_c else (), x if use_vr else ())

    def first(key, message, c_i, data):
        own = full_gradient(key, task, message["model"], data, work)
        return Result({"first": own}, 1.0, own if use_c else ())

    def open_with(key, server, aggregate, cohort):
        mean = tree.scale(1 / cohort.clients, aggregate["first"])  # (7)
        return server._replace(g=mean, c=mean if use_c else ())

    def local(key, message, c_i, data):
        x, plan = message["model"], batches(key, data, work)
        shift = tree.scale(1 - beta, message["g"])
        if use_c:
            shift = tree.axpy(beta, tree.sub(message["c"], c_i), shift)

        def direction(key, y, total, batch):
            loss, raw, stats = gradient(task)(key, y, batch)
            v = tree.axpy(1 if use_vr else beta, raw, moving(shift))  # (1)
            if use_vr:
                v = tree.axpy(beta - 1, gradient_at(task, message["previous"], key, batch), v)
            return loss, v, stats, tree.add(total, raw) if use_c else ()

        y, total, loss = descend_with(plan, x, tree.zeros_like(x) if use_c else (), direction, work.optimizer)  # (2)
        inverse = 1 / jnp.maximum(plan.steps, 1)
        upload = {"model": scaled(inverse, tree.sub(y, x))}
        if use_c:
            fresh = tree.select(plan.steps > 0, tree.scale(inverse, total), c_i)  # (3)
            upload["c"], c_i = tree.sub(fresh, c_i), fresh
        return Result(upload, weigh(weighting, data), c_i, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        mean = aggregate["model"]
        rate = mean_steps(cohort, weighting) if server_lr is None else server_lr / work.lr
        return server._replace(
            params=stepped(rate, mean, server.params),  # (6)
            g=tree.scale(-1 / work.lr, moving(mean)),  # (4)
            c=tree.axpy(1 / cohort.clients, aggregate["c"], server.c) if use_c else (),  # (5)
            previous=server.params if use_vr else (),
        )

    wanted = {"g": True, "c": use_c, "previous": use_vr}
    sends = tuple(name for name in wanted if wanted[name])
    method = stateful(local, serve, server, tree.zeros_like if use_c else None, sends, aggregate={"c": rules.total()}, steps=work.steps)
    if start == "zero":
        return method
    return method._replace(phases=(once(method, first, serve=open_with, aggregate={"first": rules.total()}), method.phase()))
