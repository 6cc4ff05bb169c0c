"""FedRep: a shared representation, learned under heads that are fitted first.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021.

    (1)  h_i <- h_i - lr grad_h F(phi^t, h_i; b)           head_epochs passes, phi still
    (2)  phi <- phi - lr grad_phi F(phi, h_i; b)           from phi^t, the local epochs or steps, h_i still
    (3)  phi^{t+1} = sum_i n_i phi_i / sum_i n_i
    (4)  h_i as in (1), tune_epochs passes                 when client i is evaluated, on a copy

Keeps: phi does not move in (1), nor h_i in (2); no head is ever sent.
Reduces to: FedAvg of the body under one still head with head_epochs = tune_epochs = 0.
Departs: the paper tunes all heads at the end; here a copy is tuned at every evaluation (4). Statistics of normalization layers belong to
the body and are refreshed in (2) only.
"""
from __future__ import annotations

from typing import Annotated

import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Direction, Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms.split import cut, split
from fedjax_lab.registry import method
from fedjax_lab.spec import Range
from fedjax_lab.types import Method, Result, Task

PAPER = "Exploiting Shared Representations for Personalized Federated Learning"
Epochs = Annotated[int, Range(0)]


@method(family="personalization", paper=PAPER, year=2021, stateful=True)
def fedrep(task: Task, work: Work, *, head_epochs: Epochs = 10, tune_epochs: Epochs = 1, personal: str = "head",
           weighting: Weighting = "examples") -> Method:
    """Clients fit their own heads to the shared body, then improve the body under the head, and send the body only.

    Args:
      head_epochs: passes over a client's data for its head, before the body trains.
      tune_epochs: passes for a copy of its head when a client is evaluated.
      personal: a word in the path of the head's leaves.
      weighting: clients count by their examples, or all alike.
    """
    halves = cut(task, lambda params: named(params, personal))

    def only(private: bool) -> optax.GradientTransformation:
        still = {path: mark != private for path, mark in halves.private.items()}
        marks = halves.join(still, {})
        return optax.chain(work.optimizer, optax.masked(optax.set_to_zero(), marks))

    def fit(key, y, data, epochs):
        plan = batches(keys.purpose(key, "head"), data, work._replace(epochs=epochs, local_steps=0))
        return descend(plan, y, without_stats(gradient(task)), only(True)).params

    def local(key, message, client, data):
        x = message["model"]
        y = fit(key, x, data, head_epochs) if head_epochs else x  # (1)
        end = descend(batches(key, data, work), y, gradient(task), only(False))  # (2)
        return Result({"model": tree.sub(end.params, x)}, weigh(weighting, data), metrics={"loss": end.loss})

    base = split(Method(local, steps=work.steps), halves)  # (3)

    def personal_model(key, server, client, data):
        y = base.personal(key, server, client, data)
        return fit(key, y, data, tune_epochs) if tune_epochs else y  # (4)

    return base._replace(personal=personal_model)


def without_stats(direction: Direction) -> Direction:
    """The direction, where normalization statistics stay what they are."""

    def still(key, y, batch):
        loss, v, _ = direction(key, y, batch)
        return loss, v, ()

    return still
