"""SCAFFOLD-M: SCAFFOLD with the last mean direction mixed into every local step.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = beta (grad F(y; b) - c_i + c) + (1 - beta) g^t      y <- y - lr v, K_i steps from y = x^t
    (3)  c_i <- (1 / K_i) sum_k grad F(y_{i,k}; b_{i,k})         the mean of the RAW gradients of (1), for i in S
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)
    (5)  c <- c + (1 / N) sum_S (c_i' - c_i)                     over all N clients
    (6)  x^{t+1} = x^t - server_lr g^{t+1}

Keeps: c is the mean of all c_i; the absent keep their c_i.
Reduces to: SCAFFOLD, option II, with beta = 1 and its server_lr = server_lr / (lr K); FedAvg-M as long as all c_i are equal, and where all
clients take one step.
Departs: (3) averages the gradients it has, since c_i - c + (x - y) / (lr K) would mix the momentum in. Uploads (y_i - x^t) / K_i. The
equations are corners of parts/drift, whose numbers these are.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.drift import Start, drift_corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Momentum Benefits Non-IID Federated Learning Simply and Provably"


@method(family="optimization", paper=PAPER, year=2024, stateful=True, plain_sgd="whose mean step is the mean direction")
def scaffold_m(task: Task, work: Work, *, beta: Share = 0.1, server_lr: Positive | None = None, start: Start = "zero") -> Method:
    """SCAFFOLD with server momentum inside the local steps.

    Args:
      beta: weight of the new, corrected gradient.
      server_lr: step of the server along the mean direction; none for lr times the mean number of steps.
      start: control variates and the first direction are zero, or the clients' gradients at x^0 and their mean.
    """
    return drift_corrected(task, work, use_c=True, use_vr=False, beta=beta, server_lr=server_lr, start=start)
