"""FedWon: no normalization of activations, but of weights, so that nothing of one domain's statistics is in the model.

Zhuang, Lyu, "FedWon: Triumphing Multi-domain Federated Learning Without Normalization", ICLR 2024.

The model has What_o = g_o (W_o - mean W_o) / sqrt(max(N var W_o, 1e-4)) for every output unit o of fan-in N of a convolution, and 1.7139 relu:
norm=weight_standardized.

    (1)  G_o <- G_o clip max(||W_o||, 1e-3) / ||G_o|| where that is shorter, for every output unit but the last layer's;  G = grad F(y; b), W raw
    (2)  y <- y - lr G                            K_i steps from y = x^t
    (3)  x^{t+1} = sum_i n_i y_i / sum_i n_i      of raw W, g and biases; What is anew of the mean

Keeps: outputs do not change with W -> a W + b, a > 0, and depend on no other example; the model has no statistics.
Reduces to: FedAvg of the model with clip = 0, which clips nothing.
Departs: the method is (1): it trains any model without normalization statistics. A vector is one unit. Values of clip from 0.16 to 1.28 are in use.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Method, Task, Tree

PAPER = "FedWon: Triumphing Multi-domain Federated Learning Without Normalization"


@method(family="representation", paper=PAPER, year=2024, batch_size=32)
def fedwon(task: Task, work: Work, *, clip: NonNegative = 0.64, last: str = "head", weighting: Weighting = "examples") -> Method:
    """FedAvg with gradients clipped by the size of the weights, for models that normalize weights only.

    Args:
      clip: the longest gradient of an output unit, as a multiple of its weights' norm; 0 for any.
      last: a word in the path of the last layer's leaves, whose gradients are as they are.
      weighting: clients count by their examples, or all alike.
    """
    if statistics.present(task):
        raise ValueError(f"'fedwon' needs a model without normalization statistics; task '{task.name}' has some: choose norm=weight_standardized")

    def below(params: Tree) -> Tree:
        return jax.tree.map_with_path(lambda path, _: last not in jax.tree_util.keystr(path, simple=True, separator="/"), params)

    longest = jnp.where(clip > 0, clip, jnp.inf)
    clipped = optax.masked(optax.adaptive_grad_clip(longest), below)  # (1)
    return Method(local_sgd(task, work._replace(optimizer=optax.chain(clipped, work.optimizer)), weighting), steps=work.steps)  # (2), (3)
