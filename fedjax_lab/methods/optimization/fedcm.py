"""FedCM: client-level momentum.

Xu, Wang, Wang, Yao, "FedCM: Federated Learning with Client-level Momentum", 2021.

    (1)  v = alpha grad F(y; b) + (1 - alpha) g          y <- y - lr v, K_i steps from y = x^t
    (2)  g <- mean_S (x^t - y_i) / (lr K_i)              the mean of all v that were used
    (3)  x^{t+1} = x^t + server_lr mean_S (y_i - x^t)

Keeps: g is the mean of directions, whatever the steps; before the first round it is zero, which scales that round's steps by alpha.
Reduces to: FedAvg (uniform) with alpha = 1; FedAvg-M with beta = alpha and server_lr lr K there.
Departs: each client divides by its own K_i, where the paper has one K, and by the lr of that round: the released runs have lr_decay 0.998.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.directed import directed, mean_direction
from fedjax_lab.parts.oracles.directions import corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Result, Task

PAPER = "FedCM: Federated Learning with Client-level Momentum"


@method(family="optimization", paper=PAPER, year=2021, plain_sgd="whose mean step is the mean direction")
def fedcm(task: Task, work: Work, *, alpha: Share = 0.1, server_lr: Positive = 1.0, weighting: Weighting = "uniform") -> Method:
    """Local steps along a mix of the own gradient and the cohort's last mean direction.

    Args:
      alpha: share of the own gradient; 0.01 to 0.1 in the paper.
      server_lr: step of the server along the mean change.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, client, data):
        x, g, plan = message["model"], message["g"], batches(key, data, work)
        y = descend(plan, x, corrected(gradient(task), tree.scale(1 - alpha, g), alpha), work.optimizer)  # (1)
        change = tree.sub(y.params, x)
        upload = {"model": change, "g": mean_direction(change, plan.steps, work.lr)}
        return Result(upload, weigh(weighting, data), metrics={"loss": y.loss})

    return directed(local, server_lr, steps=work.steps)  # (2), (3)
