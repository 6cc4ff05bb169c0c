"""SCAFFOLD-M-VR: SCAFFOLD with recursive variance reduction across rounds.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024.

    (1)  v = grad F(y; b) - beta (c_i - c) + (1 - beta) (g^t - grad F(x^{t-1}; b))     one batch b;  y <- y - lr v from y = x^t
    (3)  c_i <- (1 / K_i) sum_k grad F(y_{i,k}; b_{i,k})                               for i in S
    (4)  g^{t+1} = mean_S (x^t - y_i) / (lr K_i)                                       x^{-1} = x^0
    (5)  c <- c + (1 / N) sum_S (c_i' - c_i)                                           c_i^0 = grad F_i(x^0), c^0 = g^0 = their mean
    (6)  x^{t+1} = x^t - server_lr g^{t+1}

Keeps: c is the mean of all c_i; the absent keep their c_i.
Reduces to: FedAvg-M-VR where all c_i are equal; SCAFFOLD with beta = 1; as beta -> 0, v = grad F(y) + g - grad F(x^{t-1}), as in SPIDER.
Departs: c_i^0 takes all of client i's examples in place of a batch, in one exchange with everyone at the start of round 0. Uploads (y_i - x^t) / K_i. The equations are corners of parts/drift, whose numbers these are.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.drift import Start, drift_corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Momentum Benefits Non-IID Federated Learning Simply and Provably"


@method(family="optimization", paper=PAPER, year=2024, stateful=True, plain_sgd="whose mean step is the mean direction")
def scaffold_m_vr(task: Task, work: Work, *, beta: Share = 0.1, server_lr: Positive | None = None, start: Start = "gradient") -> Method:
    """SCAFFOLD with a variance-reduced direction that lives across rounds.

    Args:
      beta: weight of the control variates and of the new gradient against the recursion.
      server_lr: step of the server along the mean direction; none for lr times the mean number of steps.
      start: control variates and the first direction are zero, or the clients' gradients at x^0 and their mean.
    """
    return drift_corrected(task, work, use_c=True, use_vr=True, beta=beta, server_lr=server_lr, start=start)
