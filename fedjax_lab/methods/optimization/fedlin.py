"""FedLin: gradient correction by a fresh global gradient, with steps as long as a client takes many.

Mitra, Jaafar, Pappas, Hassani, "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse Gradients",
NeurIPS 2021.

    (1)  all clients send grad F_i(x^t), on all of their examples              g = (1 / N) sum_i grad F_i(x^t)
    (2)  v = grad F(y; b) - grad F(x^t; b) + g, one batch b                    y <- y - (lr / K_i) v, K_i steps from y = x^t
    (3)  x^{t+1} = mean y_i
    (4)  uplink: h_i = top-k[e_i + grad F_i(x^t)], e_i <- e_i + grad F_i(x^t) - h_i, and g is the mean of the h_i
         downlink: clients get top-k[e + g], e <- e + g - top-k[e + g]

Keeps: a client's steps add up to lr, whatever their number; without (4) an optimum is a fixed point for any K_i.
Reduces to: gradient descent with rate lr, with one step a client.
Departs: with fewer than all clients, which the paper has not, g and (3) are means over those that are there; runs refuse it.
"""
from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.oracles.directions import full_gradient, gradient_at
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.topk import Kept, topk
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse Gradients"


class Lin(NamedTuple):
    """params: the model x.  g: the global gradient.  error: what the downlink has not sent, () where it sends all."""

    params: Tree
    g: Tree
    error: Tree


@method(family="optimization", paper=PAPER, year=2021, plain_sgd="whose steps add up to lr",
        everyone="whose gradients make the global one")
def fedlin(task: Task, work: Work, *, up_share: Kept = 1.0, down_share: Kept = 1.0) -> Method:
    """Two exchanges a round: gradients of all clients, then local steps corrected by their mean.

    Args:
      up_share: share of the entries of a client's gradient that is sent, the largest, the rest remembered.
      down_share: share of the entries of the global gradient that is sent, likewise.
    """
    down = topk(down_share)

    def measure(key, message, client, data):
        x = message["model"]
        return Result({"gradient": full_gradient(key, task, x, data, work)}, weigh("uniform", data), keep=x)

    def gather(key, server, aggregate, cohort):
        g, error = aggregate["gradient"], ()  # (1)
        if down_share < 1:
            code, error = down.encode(key, g, server.error)  # (4)
            g = down.decode(code)
        return tree.select(heard(cohort) > 0, server._replace(g=g, error=error), server)

    def local(key, message, client, data):
        x, g, plan = data.keep, message["g"], batches(key, data, work)
        share = 1 / jnp.maximum(plan.steps, 1)

        def direction(key, y, batch):
            loss, here, stats = gradient(task)(key, y, batch)
            v = tree.add(tree.sub(here, gradient_at(task, x, key, batch)), g)
            return loss, tree.scale(share, v), stats

        y = descend(plan, x, direction, work.optimizer)  # (2)
        return Result({"model": tree.sub(y.params, x)}, weigh("uniform", data), metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]))  # (3)

    def server(x, census):
        return Lin(x, tree.zeros_like(x), () if down_share == 1 else down.init(x))

    method = stateful(local, serve, server, steps=work.steps)
    ask = method.phase(local=measure, serve=gather, up={} if up_share == 1 else {"gradient": topk(up_share)})
    train = method.phase(broadcast=lambda server, client, clock: {"g": server.g},  # the clients have the model
                         down={} if down_share == 1 else {"g": topk(down_share, memory=False)})
    return method._replace(phases=(ask, train))
