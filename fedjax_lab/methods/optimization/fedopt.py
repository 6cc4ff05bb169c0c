"""FedAdagrad, FedYogi and FedAdam: an adaptive optimizer at the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021, Algorithm 2.

    (1)  u = sum_i n_i (y_i - x^t) / sum_i n_i            y_i by local SGD from x^t, over the sampled clients
    (2)  m <- beta1 m + (1 - beta1) u                     m_0 = 0
    (3)  v <- v + u^2                                     FedAdagrad, v_0 = tau^2 in all three
         v <- v - (1 - beta2) u^2 sign(v - u^2)           FedYogi
         v <- beta2 v + (1 - beta2) u^2                   FedAdam
    (4)  x^{t+1} = x^t + server_lr m / (sqrt(v) + tau)    no bias correction, tau outside the root

Keeps: v > 0; FedAdagrad's v never falls; where u is always zero the model stays.
Reduces to: FedAvgM as an ema with rate server_lr / tau for large tau, up to a factor 1/2, since v_0 = tau^2; Yogi's step is Adam's where
u^2 = v.
Departs: nothing.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.servers import optimizers
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Adaptive Federated Optimization"


@method(family="optimization", paper=PAPER, year=2021, refuses={"server": "its server step is the method"})
def fedadagrad(task: Task, work: Work, *, server_lr: Positive = 0.1, beta1: Share = 0.0, tau: Positive = 1e-3,
               weighting: Weighting = "examples") -> Method:
    """FedAvg with Adagrad at the server.

    Args:
      server_lr: server learning rate, tuned jointly with lr.
      beta1: share of the old first moment that stays.
      tau: degree of adaptivity, 1e-5 to 1e-1.
      weighting: clients count by their examples, or all alike.
    """
    average = Method(local_sgd(task, work, weighting), steps=work.steps)  # (1)
    return served(average, optimizers.adagrad(lr=server_lr, beta1=beta1, tau=tau))  # (2) to (4)


@method(family="optimization", paper=PAPER, year=2021, refuses={"server": "its server step is the method"})
def fedyogi(task: Task, work: Work, *, server_lr: Positive = 0.1, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3,
            weighting: Weighting = "examples") -> Method:
    """FedAvg with Yogi at the server.

    Args:
      server_lr: server learning rate, tuned jointly with lr.
      beta1, beta2: shares of the old first and second moment that stay.
      tau: degree of adaptivity, 1e-5 to 1e-1.
      weighting: clients count by their examples, or all alike.
    """
    average = Method(local_sgd(task, work, weighting), steps=work.steps)  # (1)
    return served(average, optimizers.yogi(lr=server_lr, beta1=beta1, beta2=beta2, tau=tau))  # (2) to (4)


@method(family="optimization", paper=PAPER, year=2021, refuses={"server": "its server step is the method"})
def fedadam(task: Task, work: Work, *, server_lr: Positive = 0.1, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3,
            weighting: Weighting = "examples") -> Method:
    """FedAvg with Adam at the server.

    Args:
      server_lr: server learning rate, tuned jointly with lr.
      beta1, beta2: shares of the old first and second moment that stay.
      tau: degree of adaptivity, 1e-5 to 1e-1.
      weighting: clients count by their examples, or all alike.
    """
    average = Method(local_sgd(task, work, weighting), steps=work.steps)  # (1)
    return served(average, optimizers.adam(lr=server_lr, beta1=beta1, beta2=beta2, tau=tau))  # (2) to (4)
