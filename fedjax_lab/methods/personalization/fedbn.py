"""FedBN: every client normalizes in its own way.

Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021.

    (1)  y <- y - lr grad F(y; b)                         from x^t with the client's own normalization layers
    (2)  x^{t+1} = mean_S y_i                             but for scale, shift and running statistics of those layers, which stay

Keeps: normalization leaves are never sent; a client that does not take part keeps its own.
Reduces to: FedAvg where the model has no batch normalization.
Departs: the layers are told by their names: BatchNorm in the path, and the sub-tree "stats". The global model that is evaluated has the
normalization of the initialization, since there is none of it: look at the personal models.
"""
from __future__ import annotations

import jax

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.transforms.split import cut, split
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Task, Tree

PAPER = "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization"


@method(family="personalization", paper=PAPER, year=2021, stateful=True)
def fedbn(task: Task, work: Work, *, weighting: Weighting = "uniform") -> Method:
    """FedAvg where batch normalization, its scale, shift and statistics, is every client's own.

    Args:
      weighting: clients count all alike, or by their examples.
    """
    return split(Method(local_sgd(task, work, weighting), steps=work.steps), cut(task, normalizing))  # (1), (2)


def normalizing(params: Tree) -> Tree:
    """True for the leaves of batch normalization, if there are any."""

    def is_norm(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return name.startswith("stats/") or "BatchNorm" in name

    return jax.tree.map_with_path(is_norm, params)
