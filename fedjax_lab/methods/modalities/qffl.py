"""q-FedAvg: clients with a high loss pull harder.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2.

    (1)  F_k = F_k(x^t) on all of client k's examples, plus 1e-10            L = 1 / lr
    (2)  y_k by local SGD from x^t;   g_k = L (x^t - y_k)
    (3)  D_k = F_k^q g_k,   h_k = q F_k^{q-1} ||g_k||^2 + L F_k^q
    (4)  x^{t+1} = x^t - sum_k D_k / sum_k h_k                               sums, not means

Keeps: the objective is sum_k p_k F_k^{q+1} / (q + 1), of which (4) is a step with the estimated local Lipschitz constant sum_k h_k.
Reduces to: FedAvg where all clients count alike, with q = 0.
Departs: the field "model" is y_k - x^t and L F_k^q its weight, so that wires and robust rules act on a change. The p_k of the objective
are the chance of being drawn: --participation=weighted draws clients by their examples. Normalization statistics are averaged.
"""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.moving import moving, stepped, summed
from fedjax_lab.parts.oracles.directions import full_loss
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Method, Result, Task

PAPER = "Fair Resource Allocation in Federated Learning"


@method(family="modalities", paper=PAPER, year=2020, plain_sgd="whose rate tells the curvature 1 / lr",
        refuses={"aggregator": "its sum is not a mean", "server": "its step is the ratio of two sums"})
def qffl(task: Task, work: Work, *, q: NonNegative = 1.0) -> Method:
    """FedAvg in which a client counts by a power of its loss, and the server's step is as long as the clients' curvature allows.

    Args:
      q: the power; 0 counts all alike, large values look at the worst client only; 0.001 to 5.
    """

    def local(key, message, client, data):
        x, L = message["model"], 1 / work.lr
        F = 1e-10 + full_loss(keys.purpose(key, "whole"), task, x, data, work)  # (1)
        end = descend(batches(key, data, work), x, gradient(task), work.optimizer)
        change = tree.sub(end.params, x)  # (2)
        square = tree.vdot(moving(change), moving(change)) * L**2
        there = weigh("uniform", data)
        h = q * F ** (q - 1) * square + L * F**q  # (3)
        return Result({"model": change, "h": h}, {"model": there * L * F**q, "h": there}, metrics={"loss": end.loss})

    def serve(key, x, aggregate, cohort):
        h = aggregate["h"]
        return stepped(jnp.where(h > 0, 1 / jnp.where(h > 0, h, 1), 0), aggregate["model"], x)  # (4)

    return Method(local, serve=serve, aggregate={"model": summed(), "h": rules.total()}, steps=work.steps)
