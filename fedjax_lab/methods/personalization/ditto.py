"""Ditto: a personal model beside the global one, held near it.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, Algorithm 1.

    (1)  v_i <- v_i - lr [grad F_i(v_i; b) + lam (v_i - x^t)]     personal_epochs passes, or as much as (2)
    (2)  y <- y - lr grad F_i(y; b)                               from y = x^t
    (3)  x^{t+1} = sum_i n_i y_i / sum_i n_i                      client i is evaluated with v_i

Keeps: the server's path is FedAvg's, whatever lam is; a client that does not take part keeps its v_i.
Reduces to: training alone with lam = 0; v_i stays at x^t where lr lam = 1 and gradients vanish beside lam.
Departs: v_i starts from the initialization.
"""
from __future__ import annotations

from typing import Annotated

from fedjax_lab import keys
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.oracles.directions import proximal
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Range
from fedjax_lab.types import Method, Task

PAPER = "Ditto: Fair and Robust Federated Learning Through Personalization"


@method(family="personalization", paper=PAPER, year=2021, stateful=True)
def ditto(task: Task, work: Work, *, lam: NonNegative = 0.1, personal_epochs: Annotated[int, Range(0)] = 0,
          weighting: Weighting = "examples") -> Method:
    """FedAvg, and beside it a model of every client's own with a pull towards the global one.

    Args:
      lam: strength of the pull; the paper tries 0.05, 0.1, 1 and 2.
      personal_epochs: passes over a client's data for its own model; 0 means as much work as for the global one.
      weighting: clients count by their examples, or all alike.
    """
    shared = local_sgd(task, work, weighting)
    own = work._replace(epochs=personal_epochs, local_steps=0) if personal_epochs else work

    def local(key, message, v, data):
        plan = batches(keys.purpose(key, "personal"), data, own)
        v = descend(plan, v, proximal(gradient(task), lam, message["model"]), work.optimizer).params  # (1)
        return shared(key, message, v, data)  # (2)

    return Method(local, init_client=lambda key, params, facts: params, steps=work.steps,  # (3) is the mean change
                  personal=lambda key, server, v, data: v)
