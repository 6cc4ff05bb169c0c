"""SCAFFOLD: control variates against client drift.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, Algorithm 1.

    (1)  y <- y - lr [grad F(y; b) - c_i + c]              K_i steps from y = x^t
    (2)  c_i' = grad F_i(x^t), the full gradient           option I
         c_i' = c_i - c + (x^t - y_i) / (K_i lr)           option II
    (3)  x^{t+1} = x^t + server_lr mean_S (y_i - x^t)
    (4)  c <- c + (1 / N) sum_S (c_i' - c_i)               over all N clients, not the sampled ones

Keeps: c is the mean of all c_i; a client that does not take part keeps its c_i.
Reduces to: SGD on the mean objective with one step and all clients; FedAvg (uniform) as long as c and all c_i are zero.
Departs: a client without steps keeps its c_i under option II. Clients count alike, as in the paper; sizes matter only through K_i.
"""
from __future__ import annotations

from typing import Literal

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.control import controlled, mean_gradient
from fedjax_lab.parts.oracles.directions import corrected, full_gradient
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"


@method(family="optimization", paper=PAPER, year=2020, stateful=True)
def scaffold(task: Task, work: Work, *, server_lr: Positive = 1.0, option: Literal["I", "II"] = "II") -> Method:
    """Local SGD, corrected by the difference of server and client control variates.

    Args:
      server_lr: step of the server along the mean change.
      option: how c_i is refreshed: I with the full gradient at the model received, II with the mean gradient of the local steps.
    """
    if option == "II" and not work.plain:
        raise ValueError(f"'scaffold' option II refuses client_optimizer '{work.named}': it must be sgd without momentum or decay; choose option I")

    def local(key, message, c_i, data):
        x, c, plan = message["model"], message["c"], batches(key, data, work)
        y = descend(plan, x, corrected(gradient(task), tree.sub(c, c_i)), work.optimizer)  # (1)
        change = tree.sub(y.params, x)
        if option == "I":
            fresh = full_gradient(key, task, x, data, work)  # (2)
        else:
            fresh = mean_gradient(c_i, c, change, plan.steps, work.lr)  # (2)
        upload = {"model": change, "c": tree.sub(fresh, c_i)}
        return Result(upload, weigh("uniform", data), fresh, metrics={"loss": y.loss})

    return controlled(local, server_lr, steps=work.steps)  # (3), (4)
