"""FedGAMMA: SCAFFOLD around a sharpness-aware gradient.

Dai, Yang, Sun, Liu, Wang, "FedGAMMA: Federated Learning with Global Sharpness-Aware Minimization", TNNLS 2023.

    (1)  v = grad F(y + rho g1 / ||g1||; b) - c_i + c       g1 = grad F(y; b), the same batch;  y <- y - lr v, K_i steps from y = x^t
    (2)  c_i' = c_i - c + (x^t - y_i) / (K_i lr)
    (3)  x^{t+1} = x^t + server_lr mean_S (y_i - x^t)
    (4)  c <- c + (1 / N) sum_S (c_i' - c_i)

Keeps: c is the mean of all c_i, each a mean of ascended gradients; the absent keep theirs.
Reduces to: SCAFFOLD, option II, with rho = 0.
Departs: a client without steps keeps its c_i.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.control import controlled, mean_gradient
from fedjax_lab.parts.oracles.directions import ascended, corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "FedGAMMA: Federated Learning with Global Sharpness-Aware Minimization"


@method(family="optimization", paper=PAPER, year=2023, stateful=True, plain_sgd="whose change is the mean gradient")
def fedgamma(task: Task, work: Work, *, rho: NonNegative = 0.01, server_lr: Positive = 1.0) -> Method:
    """Sharpness-aware local steps with control variates against client drift.

    Args:
      rho: length of the ascent step.
      server_lr: step of the server along the mean change.
    """

    def local(key, message, c_i, data):
        x, c, plan = message["model"], message["c"], batches(key, data, work)
        sharp = ascended(gradient(task), rho)
        y = descend(plan, x, corrected(sharp, tree.sub(c, c_i)), work.optimizer)  # (1)
        change = tree.sub(y.params, x)
        fresh = mean_gradient(c_i, c, change, plan.steps, work.lr)  # (2)
        return Result({"model": change, "c": tree.sub(fresh, c_i)}, weigh("uniform", data), fresh, metrics={"loss": y.loss})

    return controlled(local, server_lr, steps=work.steps)  # (3), (4)
