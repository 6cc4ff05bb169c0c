"""FedSem: first on labels alone; then the global model labels what has none, and clients train on both.

Albaseer, Ciftler, Abdallah, Al-Fuqaha, "Exploiting Unlabeled Data in Smart Cities using Federated Edge Learning", IWCMC 2020.

    (1)  t < warmup:   y <- y - lr grad F_i(y; b)       from x^t, b of the labeled examples
    (2)  t >= warmup:  y <- y - lr grad F_i(y; b)       b of all examples, an unlabeled u with the label argmax f(u; x^t)
    (3)  x^{t+1} = sum_i n_i y_i / sum_i n_i

Keeps: the labels of a round do not change while clients train; a label that is known is never replaced.
Reduces to: FedAvg on the labeled examples before `warmup`; FedAvg where all have labels.
Departs: a client takes as many steps as FedAvg on all of its examples, and before `warmup` goes through its labeled ones over and over.
"""
from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, descend, gradient
from fedjax_lab.parts import streams
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.registry import method
from fedjax_lab.spec import Range
from fedjax_lab.types import Method, Result, Task


@method(family="labels", paper="Exploiting Unlabeled Data in Smart Cities using Federated Edge Learning", year=2020)
def fedsem(task: Task, work: Work, *, warmup: Annotated[int, Range(0)] = 10, weighting: Weighting = "examples") -> Method:
    """FedAvg on labels, after some rounds joined by those that the global model gives.

    Args:
      warmup: rounds on the labeled examples alone.
      weighting: clients count by all of their examples, or all alike.
    """

    def local(key, message, client, data):
        x = message["model"]

        def direction(key, y, batch):
            guess = jnp.argmax(task.apply(x, batch), -1).astype(batch["y"].dtype)
            return gradient(task)(key, y, {**batch, "y": jnp.where(batch[streams.FIELD], batch["y"], guess)})  # (2)

        plan = streams.over(key, data, work, streams.first(data, data.clock >= warmup))  # (1)
        end = descend(plan, x, direction, work.optimizer)
        return Result({"model": tree.sub(end.params, x)}, weigh(weighting, data), metrics={"loss": end.loss})

    def init_server(key, params, census):
        streams.demanded("fedsem", task, census)
        return params

    return Method(local, init_server=init_server, steps=work.steps)  # (3)
