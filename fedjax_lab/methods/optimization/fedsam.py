"""FedSAM and MoFedSAM: sharpness-aware local training.

Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022.

    (1)  v = grad F(y + rho g1 / ||g1||; b)                 g1 = grad F(y; b), the same batch, one norm over all parameters
    (2)  v <- alpha v + (1 - alpha) g                       MoFedSAM; FedSAM has alpha = 1
    (3)  y <- y - lr v                                      K_i steps from y = x^t
    (4)  x^{t+1} = x^t + server_lr sum_i p_i (y_i - x^t)    p_i = n_i / sum_S n
    (5)  g <- sum_i p_i (x^t - y_i) / (lr K_i)              MoFedSAM

Keeps: on F = L ||y||^2 / 2, v = L (1 + rho / ||y||) y.
Reduces to: FedAvg with rho = 0 (and alpha = 1); FedCM with rho = 0.
Departs: nothing is differentiated through the perturbation. With alpha = 1, (2) and (5) are left out, and nothing but the model is sent.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.directed import directed, mean_direction
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.oracles.directions import ascended, corrected
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive, Share
from fedjax_lab.types import Method, Result, Task

PAPER = "Generalized Federated Learning via Sharpness Aware Minimization"


@method(family="optimization", paper=PAPER, year=2022)
def fedsam(task: Task, work: Work, *, rho: NonNegative = 0.05, alpha: Share = 1.0, server_lr: Positive = 1.0,
           weighting: Weighting = "examples") -> Method:
    """FedAvg with sharpness-aware local steps; with alpha below 1 MoFedSAM, which adds client-level momentum.

    Args:
      rho: length of the ascent step; 0.05 to 0.1.
      alpha: share of the own gradient; 1 is FedSAM, 0.05 to 0.1 is MoFedSAM.
      server_lr: step of the server along the mean change.
      weighting: clients count by their examples, or all alike.
    """
    if alpha != 1 and not work.plain:
        raise ValueError(f"'fedsam' with alpha below 1 refuses client_optimizer '{work.named}': it must be sgd without momentum or decay")

    def plain(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, ascended(gradient(task), rho), work.optimizer)  # (1), (3)
        return Result({"model": tree.sub(y.params, x)}, weigh(weighting, data), metrics={"loss": y.loss})

    def momentum(key, message, client, data):
        x, g, plan = message["model"], message["g"], batches(key, data, work)
        direction = corrected(ascended(gradient(task), rho), tree.scale(1 - alpha, g), alpha)  # (2)
        y = descend(plan, x, direction, work.optimizer)
        change = tree.sub(y.params, x)
        upload = {"model": change, "g": mean_direction(change, plan.steps, work.lr)}
        return Result(upload, weigh(weighting, data), metrics={"loss": y.loss})

    def serve(key, x, aggregate, cohort):
        return stepped(server_lr, aggregate["model"], x)  # (4)

    if alpha == 1:
        return Method(plain, serve=serve, steps=work.steps)
    return directed(momentum, server_lr, steps=work.steps)  # (4), (5)
