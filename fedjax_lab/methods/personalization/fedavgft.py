"""FedAvg with local fine-tuning: one global model, tuned by every client to its own data before it is used.

A baseline of the personalization literature; Collins, Hassani, Mokhtari, Shakkottai, "FedAvg with Fine Tuning: Local Updates Lead to
Representation Learning", NeurIPS 2022.

    (1)  x^{t+1} = x^t + server_lr sum_i n_i (y_i - x^t) / sum_i n_i     y_i by local SGD from x^t
    (2)  w_i = SGD from x^t over finetune_epochs of client i's data      what client i is evaluated with

Keeps: fine-tuning happens on a copy when models are evaluated, and the server's path does not depend on it.
Reduces to: FedAvg, personal models and all, with finetune_epochs = 0.
Departs: tunes the whole model, or the leaves named by `tune`; which layers carry normalization is read from their names.
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import optax

from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.moving import stepped
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range
from fedjax_lab.types import Method, Task

PAPER = "FedAvg with Fine Tuning: Local Updates Lead to Representation Learning"
WORDS = {"all": ("",), "head": ("head",), "norm": ("norm", "bn")}


@method(family="personalization", paper=PAPER, year=2022)
def fedavgft(task: Task, work: Work, *, server_lr: Positive = 1.0, finetune_epochs: Annotated[int, Range(0)] = 1, finetune_rate: Positive = 1.0,
             tune: Literal["all", "head", "norm"] = "all", weighting: Weighting = "examples") -> Method:
    """FedAvg whose model every client tunes to its own data before it is evaluated.

    Args:
      server_lr: step of the server along the mean change of the model.
      finetune_epochs: passes over a client's data when it tunes its copy.
      finetune_rate: rate of the tuning, as a multiple of lr.
      tune: which leaves the tuning moves: all, those with "head" in their path, or those with "norm" or "bn".
      weighting: clients count by their examples, or all alike.
    """
    tuning = work._replace(epochs=finetune_epochs, local_steps=0)

    def serve(key, x, aggregate, cohort):
        return stepped(server_lr, aggregate["model"], x)  # (1)

    def personal(key, x, client, data):
        chosen = named(x, *WORDS[tune])
        still = optax.masked(optax.set_to_zero(), jax.tree.map(lambda c: not c, chosen))
        optimizer = optax.chain(work.optimizer, optax.scale(finetune_rate), still)
        tuned = descend(batches(key, data, tuning), x, gradient(task), optimizer).params  # (2)
        return jax.tree.map(lambda c, w, x: w if c else x, chosen, tuned, x)  # statistics of what is not tuned stay too

    return Method(local_sgd(task, work, weighting), serve=serve, steps=work.steps, personal=personal)
