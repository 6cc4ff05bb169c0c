"""FedAvgM: FedAvg with momentum at the server.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.

    (1)  u = sum_i n_i (y_i - x^t) / sum_i n_i        y_i by local SGD from x^t, over the sampled clients
    (2)  m <- beta m + u                              heavy ball;  m <- beta m + (1 - beta) u as an ema
    (3)  x^{t+1} = x^t + server_lr m                  with nesterov, m is replaced here by beta m + u

Keeps: a constant u gives m -> u / (1 - beta) as a heavy ball, m -> u as an ema.
Reduces to: FedAvg with beta = 0; SGD with momentum on the pooled gradient with one full-batch step and all clients.
Departs: u is the change, minus the card's Delta. The two forms differ by 1 / (1 - beta) in effective rate, so each has its name.
"""
from __future__ import annotations

from typing import Literal

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.servers.optimizers import momentum
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"


@method(family="optimization", paper=PAPER, year=2019, refuses={"server": "its server step is the method"})
def fedavgm(task: Task, work: Work, *, server_lr: Positive = 1.0, beta: Share = 0.9, form: Literal["heavy_ball", "ema"] = "heavy_ball",
            nesterov: bool = False, weighting: Weighting = "examples") -> Method:
    """FedAvg with momentum at the server.

    Args:
      server_lr: step of the server along its momentum.
      beta: share of the old momentum that stays; the paper tries 0, 0.7, 0.9, 0.97, 0.99 and 0.997.
      form: heavy_ball adds the whole mean change to the momentum, ema 1 - beta of it.
      nesterov: look ahead along the new momentum.
      weighting: clients count by their examples, or all alike.
    """
    average = Method(local_sgd(task, work, weighting), steps=work.steps)  # (1)
    return served(average, momentum(lr=server_lr, beta=beta, form=form, nesterov=nesterov))  # (2), (3)
