"""DFedAvgM: decentralized federated averaging with momentum.

Sun, Li, Wang, "Decentralized Federated Averaging", TPAMI 2022, Algorithm 1.

    (1)  y^{k+1} = y^k - lr grad F_i(y^k; b) + theta (y^k - y^{k-1})      K steps from y^0 = x_i, y^{-1} = y^0
    (2)  x_i <- sum_l W_il y_l^K                                          over the neighbors and itself

Keeps: the mean of the models is that of the nodes' last iterates, whatever the graph.
Reduces to: D-PSGD with order=after with K = 1, whatever theta; FedAvg with momentum at the clients on a full graph with equal weights.
Departs: (1) is the heavy ball v <- theta v + g, y <- y - lr v, which is equal where lr stays the same within a round. --wire_up makes
the quantized variant: the change goes through the wire, and neighbors are taken to know x_l.
"""
from __future__ import annotations

from fedjax_lab.local import Work, gradient
from fedjax_lab.parts.heavy import heavy_ball
from fedjax_lab.registry import method
from fedjax_lab.spec import Share
from fedjax_lab.types import Method, Task

PAPER = "Decentralized Federated Averaging"


@method(family="decentralized", paper=PAPER, year=2022, schedule="gossip", epochs=5, plain_sgd="which carries its own momentum")
def dfedavgm(task: Task, work: Work, *, theta: Share = 0.9) -> Method:
    """Local steps of a heavy ball, then a gossip step.

    Args:
      theta: momentum of the local steps, from zero in every round.
    """
    return Method(heavy_ball(gradient(task), work, theta), steps=work.steps)  # (1); (2) is the default serve of what gossip mixes
