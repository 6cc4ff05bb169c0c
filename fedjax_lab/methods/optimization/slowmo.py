"""SlowMo: slow momentum on top of local SGD.

Wang, Tantia, Ballas, Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020.

    (1)  y_i: K_i steps of the client optimizer from x^t
    (2)  m <- beta m + (x^t - mean_S y_i) / lr
    (3)  x^{t+1} = x^t - alpha lr m

Keeps: m is in units of gradients, so that lr may change between rounds.
Reduces to: Local SGD, which is FedAvg (uniform), with beta = 0 and alpha = 1; FedAvgM with its beta and server_lr = alpha.
Departs: the client optimizer's own state is fresh in every round (the paper's "reset" strategy). Overlap-Local-SGD, on the same card, is
not here.
"""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.moving import moving, stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Task, Tree

PAPER = "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum"


class Slow(NamedTuple):
    """params: the model x.  m: the slow momentum, in units of gradients."""

    params: Tree
    m: Tree


@method(family="optimization", paper=PAPER, year=2020, refuses={"server": "its server step is the method"})
def slowmo(task: Task, work: Work, *, beta: Share = 0.7, alpha: Positive = 1.0, weighting: Weighting = "uniform") -> Method:
    """Local SGD with a momentum step after each averaging.

    Args:
      beta: share of the slow momentum that stays; 0.5 to 0.7.
      alpha: slow learning rate, a multiple of lr.
      weighting: clients count by their examples, or all alike.
    """

    def serve(key, server, aggregate, cohort):
        m = tree.axpy(beta, server.m, tree.scale(-1 / work.lr, moving(aggregate["model"])))  # (2)
        x = stepped(0, aggregate["model"], server.params)  # statistics only
        return Slow(tree.axpy(-alpha * work.lr, m, x), m)  # (3)

    return stateful(local_sgd(task, work, weighting), serve, lambda x, people: Slow(x, tree.zeros_like(x)), steps=work.steps)  # (1)
