"""FedFN: the features of every example have one length before the head sees them.

Zhang, Beitollahi, Bie, Chen, "Normalization Is All You Need: Understanding Layer-Normalized Federated Learning under Extreme
Label Shift", TMLR 2024.

    (1)  v(h) = c h / ||h||                       h all features of one example, d of them; c = sqrt(d), or a constant
    (2)  outputs = head(v(features(x))) / tau
    (3)  y <- y - lr grad F(y; b)                 K_i steps from y = x^t
    (4)  x^{t+1} = sum_i n_i y_i / sum_i n_i

Keeps: ||v(h)|| = c; without biases below the head, outputs do not change when x is scaled.
Reduces to: FedAvg of the normalized model.
Departs: the paper's networks have no biases: choose a model without (an mlp with bias=false). FedLN, a normalization after every hidden
layer, is a model too: fedavg of an mlp with norm=layer. Where h is zero, so is v(h).
"""
from __future__ import annotations

import math

import jax.numpy as jnp

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.lengths import unit
from fedjax_lab.parts.transforms.outputs import demand, reread
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Task

PAPER = "Normalization Is All You Need: Understanding Layer-Normalized Federated Learning under Extreme Label Shift"


@method(family="representation", paper=PAPER, year=2024, lr=0.01, local_steps=10, batch_size=32)
def fedfn(task: Task, work: Work, *, length: NonNegative = 0.0, tau: Positive = 1.0, weighting: Weighting = "examples") -> Method:
    """FedAvg of a model whose last features are scaled to one length.

    Args:
      length: what they are scaled to; 0 for the square root of their number.
      tau: temperature that the head's outputs are divided by.
      weighting: clients count by their examples, or all alike.
    """
    demand("fedfn", task)

    def features(params, batch, key=None):
        h = task.features(params, batch, key)
        return jnp.where(length > 0, length, math.sqrt(math.prod(h.shape[1:]))) * unit(h)  # (1)

    normalized = reread(task, features, lambda params, z: task.head(params, z) / tau)  # (2)
    return Method(local_sgd(normalized, work, weighting), steps=work.steps, task=normalized)  # (3), (4)
