"""FedFix, and what else the theory of stochastic weights describes.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates", JMLR 2023.

    (1)  u_i = y_i - w^{v_i}                           y_i by local SGD from the model that i was sent
    (2)  w^{n+1} = w^n + server_lr sum_{S_n} d_i u_i     only S_n receive w^{n+1} and start again
    (3)  d_i = p_i f_i     by weight: p_i the client's share of all examples, f_i the schedule's factor, one over how often i is in S_n
         d_i = 1 / |S_n|   identical

Keeps: the time average of d_i 1(i in S_n) is p_i by weight, so that the optimum of sum p_i F_i is the goal; identical weights aim at
sum q_i F_i with q_i in proportion to 1 / tau_i.
Reduces to: FedAvg by weight, to the bit, where a tick lasts as long as the slowest client.
Departs: f_i is by schedule: --schedule=ticks:DT gives ceil(tau_i / DT), and buffered:c gives the updates of the run per update that
consumes i, which for c = 1 is tau_i sum_j 1 / tau_j over whole periods (the paper's Async), else the paper's FedBuff(c).
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import heard, local_sgd, mass, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Task, Tree

PAPER = "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates"


class Silos(NamedTuple):
    """params: the model;  mass: examples of all clients, float32 scalar."""

    params: Tree
    mass: jax.Array


@method(family="schedules", paper=PAPER, year=2023, schedule="ticks:0.5 or buffered")
def fedfix(task: Task, work: Work, *, server_lr: Positive = 1.0, weights: Literal["weight", "identical"] = "weight") -> Method:
    """Clients of different speed count so that all aim at the common optimum.

    Args:
      server_lr: step of the server along the weighted sum of changes.
      weights: by examples and speed, or all alike, which favors the fast.
    """
    train, by_weight = local_sgd(task, work), weights == "weight"

    def local(key, message, client, data):
        found = train(key, message, client, data)  # (1)
        d = weigh("examples", data) * data.factor if by_weight else weigh("uniform", data)  # (3)
        return weighted(found.upload, d, metrics=found.metrics)

    def serve(key, server, aggregate, cohort):
        d = shared(aggregate, server.mass if by_weight else heard(cohort))  # (3)
        return server._replace(params=stepped(server_lr * d, aggregate["model"], server.params))  # (2)

    def init_server(key, params, census):
        return Silos(params, mass("examples", census))

    return summed(local, init_server=init_server, broadcast=lambda server, client, clock: {"model": server.params}, serve=serve, steps=work.steps,
                  deploy=lambda server: server.params)
