"""FedProx: local training held near the model received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2.

    (1)  min_y F_i(y) + (mu / 2) ||y - x^t||^2 by     y <- y - lr [grad F(y; b) + mu (y - x^t)]     from y = x^t
    (2)  x^{t+1} = sum_i n_i y_i / sum_i n_i          over the sampled clients

A straggler takes as many steps of (1) as the engine allows it and its partial work counts like any other.

Keeps: with lr mu < 1 a larger mu leaves y nearer to x^t.
Reduces to: FedAvg with mu = 0.
Departs: the inexactness gamma_i of the paper is the number of steps. The paper's other scheme, clients drawn in proportion to n_i and
a plain mean, is weighting = uniform together with a participation that draws so. mu is a term of the step, not weight decay: the
two are equal under SGD only.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.oracles.directions import proximal
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Method, Result, Task

PAPER = "Federated Optimization in Heterogeneous Networks"


@method(family="optimization", paper=PAPER, year=2020)
def fedprox(task: Task, work: Work, *, mu: NonNegative = 0.01, weighting: Weighting = "examples") -> Method:
    """FedAvg with a proximal term in the clients' objective.

    Args:
      mu: strength of the pull towards the model received; the paper tries 0.001, 0.01, 0.1 and 1.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, proximal(gradient(task), mu, x), work.optimizer)  # (1)
        return Result({"model": tree.sub(y.params, x)}, weigh(weighting, data), metrics={"loss": y.loss})

    return Method(local, steps=work.steps)  # (2) is the mean change, which every server adds by default
