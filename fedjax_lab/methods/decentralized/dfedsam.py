"""DFedSAM and DFedSAM-MGS: sharpness-aware local steps between gossip steps.

Shi, Shen, Wei, Sun, Yuan, Wang, Tao, "Improving the Model Consistency of Decentralized Federated Learning", ICML 2023, Algorithm 1.

    (1)  g~ = grad F_i(y + rho g / ||g||; b)               g = grad F_i(y; b), the same batch, one norm over all parameters
    (2)  v <- momentum v + g~,   y <- y - lr v             K steps from y = x_i, v = 0
    (3)  x_i <- sum_l W_il y_l                             Q times with the same W in MGS: x = W^Q y

Keeps: the mean of the models is that of the nodes' last iterates, whatever the graph and Q.
Reduces to: DFedAvgM with rho = 0 and Q = 1; FedSAM with all clients, and momentum at the clients, on a full graph with equal weights.
Departs: nothing is differentiated through the perturbation. Q is the schedule's, published as gossip:steps=4.
"""
from __future__ import annotations

from fedjax_lab.local import Work, gradient
from fedjax_lab.parts.heavy import heavy_ball
from fedjax_lab.parts.oracles.directions import ascended
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Share
from fedjax_lab.types import Method, Task

PAPER = "Improving the Model Consistency of Decentralized Federated Learning"
PLAIN = "which carries its own momentum"


@method(family="decentralized", paper=PAPER, year=2023, schedule="gossip", epochs=5, plain_sgd=PLAIN)
def dfedsam(task: Task, work: Work, *, rho: NonNegative = 0.01, momentum: Share = 0.9) -> Method:
    """Sharpness-aware local steps with momentum, then a gossip step.

    Args:
      rho: length of the ascent step.
      momentum: of the local steps, from zero in every round.
    """
    return Method(heavy_ball(ascended(gradient(task), rho), work, momentum), steps=work.steps)  # (1), (2); (3) is the default serve


@method(family="decentralized", paper=PAPER, year=2023, schedule="gossip:steps=4", epochs=5, plain_sgd=PLAIN)
def dfedsam_mgs(task: Task, work: Work, *, rho: NonNegative = 0.01, momentum: Share = 0.9) -> Method:
    """DFedSAM with several gossip steps in a row.

    Args:
      rho: length of the ascent step.
      momentum: of the local steps, from zero in every round.
    """
    return dfedsam.factory(task, work, rho=rho, momentum=momentum)
