"""FedAvg-M: FedAvg with the last mean direction mixed into every local step.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = beta grad F(y; b) + (1 - beta) g^t              y <- y - lr v, K_i steps from y = x^t
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)             the mean of all v that were used
    (6)  x^{t+1} = x^t - server_lr g^{t+1}                   lr and server_lr are independent; server_lr = lr K averages the models

Keeps: beta multiplies the NEW gradient; g is a mean of directions, each client's divided by its own lr K_i.
Reduces to: FedAvg with beta = 1 and server_lr = lr K; FedCM with alpha = beta and its server_lr = server_lr / (lr K); for alike clients
with one step, SGD with momentum g <- beta G + (1 - beta) g.
Departs: uploads (y_i - x^t) / K_i, so that (4) is one mean. The equations are corners of parts/drift, whose numbers these are.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting
from fedjax_lab.parts.drift import Start, drift_corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Momentum Benefits Non-IID Federated Learning Simply and Provably"


@method(family="optimization", paper=PAPER, year=2024, plain_sgd="whose mean step is the mean direction")
def fedavg_m(task: Task, work: Work, *, beta: Share = 0.1, server_lr: Positive | None = None, start: Start = "zero",
             weighting: Weighting = "uniform") -> Method:
    """Local SGD with server momentum inside the local steps.

    Args:
      beta: weight of the new gradient.
      server_lr: step of the server along the mean direction; none for lr times the mean number of steps.
      start: the first direction is zero, or the mean of all clients' gradients at x^0.
      weighting: clients count by their examples, or all alike.
    """
    return drift_corrected(task, work, use_c=False, use_vr=False, beta=beta, server_lr=server_lr, start=start, weighting=weighting)
