"""Momentum, control variates and variance reduction in one recursion, of which six algorithms are the corners.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = a grad F(y; b) + beta (c - c_i) + (1 - beta) (g^t - [use_vr] grad F(x^{t-1}; b))       a = 1 with use_vr, else beta
    (2)  y <- y - lr v                                       K_i steps from y = x^t, both gradients on one batch and key
    (3)  c_i <- mean of the raw gradients grad F(y; b) of (1), for the clients that take part        [use_c]
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)             the mean of all v that were used
    (5)  c <- c + (1 / N) sum_S (c_i' - c_i)                 over all N clients [use_c]
    (6)  x^{t+1} = x^t - server_lr g^{t+1}                   server_lr = lr K, the mean of the K_i, where it is not given

    FedAvg       beta = 1                         SCAFFOLD       use_c, beta = 1
    FedAvg-M                                      SCAFFOLD-M     use_c
    FedAvg-M-VR  use_vr                           SCAFFOLD-M-VR  use_c, use_vr
"""
from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches, gradient
from fedjax_lab.parts.clients import Weighting, mean_steps, weigh
from fedjax_lab.parts.firsts import first_gradient
from fedjax_lab.parts.moving import moving, scaled, stepped
from fedjax_lab.parts.oracles.directions import descend_with, full_gradient, gradient_at
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.half import known
from fedjax_lab.types import Method, Result, Task, Tree

Start = Literal["zero", "gradient"]


class Drift(NamedTuple):
    """params: x^t.  g: the mean direction of the last round.  c: mean of the c_i, () without control variates.
    previous: x^{t-1}, () without variance reduction.  origin: x^0, where first gradients are taken, () where there are none."""

    params: Tree
    g: Tree
    c: Tree
    previous: Tree
    origin: Tree


class Variate(NamedTuple):
    """A client's row: c_i, and whether it is set."""

    c: Tree
    set: jax.Array


def drift_corrected(task: Task, work: Work, *, use_c: bool, use_vr: bool, beta: Any, server_lr: Any = None, start: Start = "zero",
                    weighting: Weighting = "uniform") -> Method:
    """The method of these switches.

    Args:
      task, work: what is trained, and how, by plain SGD.
      use_c, use_vr: control variates, variance reduction.
      beta: weight of the new gradient against the last direction.
      server_lr: step of the server along g, or None for lr times the mean number of steps, which averages the models.
      start: g^0, c_i^0 and c^0 are zero, or the gradients at x^0 of each client on all its examples and their mean. Every client is asked
        once, before the first round, which the ledger does not count; client i's own is worked out when it first takes part.
      weighting: clients count by their examples, or all alike.
    """
    firsts = start == "gradient"

    def init_server(key, params, population):
        first = first_gradient(keys.purpose(key, "first"), task, params, population, work) if firsts else tree.zeros_like(params)
        return Drift(params, first, first if use_c else (), params if use_vr else (), params if firsts and use_c else ())

    def local(key, message, row, data):
        x, plan = message["model"], batches(key, data, work)
        c_i = row.c if use_c else ()
        if use_c and firsts:
            own = full_gradient(keys.purpose(key, "first"), task, message["origin"], data, work, wanted=~row.set)
            c_i = tree.select(row.set, c_i, own)
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
            upload["c"], row = tree.sub(fresh, c_i), Variate(fresh, jnp.ones((), bool))
        return Result(upload, weigh(weighting, data), row, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        mean = aggregate["model"]
        rate = mean_steps(cohort, weighting) if server_lr is None else server_lr / work.lr
        return server._replace(
            params=stepped(rate, mean, server.params),  # (6)
            g=tree.scale(-1 / work.lr, moving(mean)),  # (4)
            c=tree.axpy(1 / cohort.clients, aggregate["c"], server.c) if use_c else (),  # (5)
            previous=server.params if use_vr else (),
        )

    def client(x):
        return Variate(tree.zeros_like(x), jnp.asarray(not firsts))

    wanted = {"g": True, "c": use_c, "previous": use_vr, "origin": firsts and use_c}
    return stateful(local, serve, None, client if use_c else None, tuple(name for name in wanted if wanted[name]), init_server=init_server,
                    aggregate={"c": rules.total()}, down={"origin": known()}, steps=work.steps)
