"""FedAvg-M-VR: FedAvg with recursive variance reduction across rounds.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = grad F(y; b) + (1 - beta) (g^t - grad F(x^{t-1}; b))     both gradients on one batch b;  y <- y - lr v from y = x^t
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)                      x^{-1} = x^0, g^0 = (1 / N) sum_i grad F_i(x^0)
    (6)  x^{t+1} = x^t - server_lr g^{t+1}

Keeps: without noise the fixed point is FedAvg's with the same lr, for every beta: drift is not damped, so lr is much smaller than
server_lr / K.
Reduces to: FedAvg with beta = 1 and server_lr = lr K; STORM for one client with one step.
Departs: g^0 takes all examples of all clients in place of a larger batch, in one exchange with everyone at the start of round 0.
Uploads (y_i - x^t) / K_i. x^{t-1} is sent anew, though clients could keep it. The equations are corners of parts/drift, whose numbers
these are.
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
def fedavg_m_vr(task: Task, work: Work, *, beta: Share = 0.1, server_lr: Positive | None = None, start: Start = "gradient",
                weighting: Weighting = "uniform") -> Method:
    """Local SGD with a variance-reduced direction (STORM) that lives across rounds.

    Args:
      beta: weight of the new gradient against the recursion.
      server_lr: step of the server along the mean direction; none for lr times the mean number of steps.
      start: the first direction is zero, or the mean of all clients' gradients at x^0.
      weighting: clients count by their examples, or all alike.
    """
    return drift_corrected(task, work, use_c=False, use_vr=True, beta=beta, server_lr=server_lr, start=start, weighting=weighting)
