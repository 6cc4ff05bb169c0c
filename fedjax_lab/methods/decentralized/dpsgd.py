"""D-PSGD: gossip SGD.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized
Parallel Stochastic Gradient Descent", NeurIPS 2017, Algorithm 1.

    (1)  g_i = grad F_i(x_i^t; b)                          one batch of node i, at its model before mixing
    (2)  x_i^{t+1} = sum_j W_ij x_j^t - lr g_i             W symmetric, doubly stochastic, zero off the graph

Keeps: the mean of the models follows SGD on the mean gradient, x_mean - lr mean_i g_i, whatever the graph.
Reduces to: every node on its own with W = I; parallel minibatch SGD with gossip:order=after on a full graph with equal weights, from equal
models, where (2) leaves each node one gradient of its own away from the others.
Departs: mixing is the schedule's, published as gossip:order=beside, (2); gossip:order=after mixes x - lr g instead. A node without
examples listens and is not listened to.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Task

PAPER = ("Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient "
         "Descent")


@method(family="decentralized", paper=PAPER, year=2017, schedule="gossip:order=beside", local_steps=1)
def dpsgd(task: Task, work: Work) -> Method:
    """One step of SGD between two gossip steps, with the gradient at the model before mixing."""
    return Method(local_sgd(task, work, "uniform"), steps=work.steps)  # (1); (2) is the default serve of what gossip mixes
