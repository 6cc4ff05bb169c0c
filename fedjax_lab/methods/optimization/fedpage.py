"""FedPAGE: full gradient steps now and then, local recursive descent in between.

Zhao, Li, Richtarik, "FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated Learning", 2021.

    (1)  with probability p, and in round 0, all N clients: g^t = (1 / N) sum_i grad F_i(x^t)
    otherwise S sampled clients, K_i steps each:
    (2)  q_0 = g^{t-1} + grad F_i(x^t) - grad F_i(x^{t-1}), on all of the client's examples
    (3)  q_k = q_{k-1} + grad F(y_k; b) - grad F(y_{k-1}; b), one batch b            y_{k+1} = y_k - lr q_k, y_0 = x^t
    (4)  g^t = mean_S (x^t - y_i) / (lr K_i)                                         the mean of all q that were used
    (5)  x^{t+1} = x^t - server_lr g^t                                               lr mean K_i where server_lr is not given

Keeps: g is in units of gradients in both kinds of rounds; a round in which nobody is heard changes nothing.
Reduces to: gradient descent with p = 1; PAGE with one local step and all clients.
Departs: the large batches of (1) and (2) are all of a client's examples. Uploads (y_i - x^t) / K_i. Clients count alike.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts.clients import heard, mean_steps, weigh
from fedjax_lab.parts.moving import moving, scaled, stepped
from fedjax_lab.parts.oracles.directions import full_gradient, full_loss_and_gradient
from fedjax_lab.parts.oracles.recursive import recursive
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated Learning"


class Page(NamedTuple):
    """params: x^t.  previous: x^{t-1}.  g: the direction of the last round."""

    params: Tree
    previous: Tree
    g: Tree


@method(family="optimization", paper=PAPER, year=2021, plain_sgd="whose mean step is the mean direction",
        refuses={"server": "it takes steps in two kinds of rounds and remembers their direction"})
def fedpage(task: Task, work: Work, *, p: Share = 0.5, server_lr: Positive | None = None) -> Method:
    """Rounds of full gradients from everybody, and rounds of variance-reduced local steps from a few.

    Args:
      p: probability of a round in which all clients send their full gradients.
      server_lr: step of the server along the direction; none for lr times the mean number of steps.
    """

    def whole(key, clock):
        return jax.random.bernoulli(key, p) | (clock == 0)

    def measure(key, message, client, data):
        loss, own = full_loss_and_gradient(key, task, message["model"], data, work)
        return Result({"gradient": own}, weigh("uniform", data), metrics={"loss": loss})

    def local(key, message, client, data):
        x, plan = message["model"], batches(key, data, work)
        here, there = (full_gradient(key, task, at, data, work) for at in (x, message["previous"]))
        q = tree.add(message["g"], tree.sub(here, there))  # (2)
        y, loss = recursive(plan, task, x, q, work.optimizer)  # (3)
        change = scaled(1 / jnp.maximum(plan.steps, 1), tree.sub(y, x))
        return Result({"model": change}, weigh("uniform", data), metrics={"loss": loss})

    def advance(server, change, g, cohort):
        rate = mean_steps(cohort, "uniform") if server_lr is None else server_lr / work.lr
        new = Page(stepped(rate, change, server.params), server.params, g)  # (5)
        return tree.select(heard(cohort) > 0, new, server)

    def gather(key, server, aggregate, cohort):
        g = aggregate["gradient"]  # (1)
        return advance(server, tree.scale(-work.lr, g), g, cohort)

    def serve(key, server, aggregate, cohort):
        return advance(server, aggregate["model"], tree.scale(-1 / work.lr, moving(aggregate["model"])), cohort)  # (4)

    method = stateful(local, serve, lambda x, census: Page(x, x, tree.zeros_like(x)), sends=("previous", "g"), steps=work.steps)
    ask = method.phase(local=measure, broadcast=lambda server, client, clock: {"model": server.params}, serve=gather, everyone=True, when=whole)
    return method._replace(phases=(ask, method.phase(when=lambda key, clock: ~whole(key, clock))))
