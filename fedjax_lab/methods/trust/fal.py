"""FAL: clients train on inputs that are changed against their own model.

Li, Song, Yang, "Federated Adversarial Learning: A Framework with Convergence Analysis", ICML 2023; of

    min_w 1/N sum_c 1/J sum_j max_{||x' - x_cj|| <= rho} loss(f_w(x'), y_cj)

    (1)  x' = A(u, x), a constant      by projected gradient ascent, see parts.oracles.pgd
    (2)  u <- u - lr grad_u mean loss(u, x', y),  from u = w
    (3)  w <- w + server_lr sum_c p_c (u_c - w)

Keeps: what clients train on is within rho of their examples, and in the box.
Reduces to: FedAvg with steps=0 or rho=0.
Departs: the theory's wide network with fixed outer weights, whole batches and all clients is a choice of task and options; the ascent looks
at the model in evaluation, so that neither dropout nor batch statistics depend on what it does.
"""
from __future__ import annotations

from typing import Annotated

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.oracles.pgd import Norm, perturbable, perturbed
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive, Range
from fedjax_lab.types import Method, Result, Task


@method(family="trust", paper="Federated Adversarial Learning: A Framework with Convergence Analysis", year=2023)
def fal(task: Task, work: Work, *, rho: NonNegative = 8 / 255, norm: Norm = "linf", steps: Annotated[int, Range(0)] = 7, step: NonNegative = 0.0,
        random: bool = True, low: float = 0.0, high: float = 1.0, weighting: Weighting = "uniform", server_lr: Positive = 1.0) -> Method:
    """FedAvg whose clients train against the worst inputs near their own.

    Args:
      rho: radius of the ball around an input, in the units of the inputs before any normalization of the model's.
      norm: of the ball.
      steps: of ascent for a step of training; 0 for none.
      step: of ascent; 0 for 2.5 rho / steps.
      random: start the ascent at a random place in the ball.
      low: end of the box that inputs stay in; -inf for none.
      high: its other end.
      weighting: of the clients, by their examples or uniform.
      server_lr: step of the server.
    """
    against, slope = perturbed(task, rho=rho, norm=norm, steps=steps, step=step, random=random, low=low, high=high), gradient(task)

    def adversarial(key, u, batch):
        return slope(key, u, against(keys.purpose(key, "attack"), u, batch))  # (1)

    def local(key, message, client, data):
        u = descend(batches(key, data, work), message["model"], adversarial, work.optimizer)  # (2)
        return Result({"model": tree.sub(u.params, message["model"])}, weigh(weighting, data), client, metrics={"loss": u.loss})

    def init_server(key, params, census):
        perturbable("fal", census.example)
        return params

    def serve(key, w, aggregate, cohort):
        return stepped(server_lr, aggregate["model"], w)  # (3)

    return Method(local, init_server=init_server, serve=serve, steps=work.steps)
