"""FedAvg and FedSGD.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1.

    (1)  y <- y - lr grad F(y; b)            over E reshuffled epochs of batches of B, from y = x^t
    (2)  x^{t+1} = sum_i n_i y_i / sum_i n_i    over the sampled clients

Keeps: a client without examples, and any padding, changes nothing; n_i of a duplicated client counts twice.
Reduces to: a step of gradient descent on the pooled data with E = 1, B = full, all clients (FedSGD).
Departs: writes (2) as x + server_lr sum n_i (y_i - x) / sum n_i, which is equal for server_lr = 1 and is what wires and robust rules
act on.
"""
from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.moving import stepped
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "Communication-Efficient Learning of Deep Networks from Decentralized Data"


@method(family="optimization", paper=PAPER, year=2017)
def fedavg(task: Task, work: Work, *, server_lr: Positive = 1.0, weighting: Literal["examples", "uniform"] = "examples") -> Method:
    """Local SGD at the clients, averaged at the server.

    Args:
      server_lr: step of the server along the mean change of the model.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, gradient(task), work.optimizer)  # (1)
        weight = data.size if weighting == "examples" else data.size > 0
        return Result({"model": tree.sub(y.params, x)}, weight.astype(jnp.float32), metrics={"loss": y.loss})

    def serve(key, x, aggregate, cohort):
        return stepped(server_lr, aggregate["model"], x)  # (2)

    return Method(local, serve=serve, steps=work.steps)


@method(family="optimization", paper=PAPER, year=2017, batch_size="full")
def fedsgd(task: Task, work: Work, *, server_lr: Positive = 1.0, weighting: Literal["examples", "uniform"] = "examples") -> Method:
    """FedAvg with one step on each client's whole data, the averaged gradient.

    Args:
      server_lr: step of the server along the mean change of the model.
      weighting: clients count by their examples, or all alike.
    """
    return fedavg.factory(task, work, server_lr=server_lr, weighting=weighting)
