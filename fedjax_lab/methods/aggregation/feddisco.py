"""FedDisco: the server's mean counts against clients whose labels are far from the target distribution.

Ye, Xu, Wang, Xu, Chen, Wang, "FedDisco: Federated Learning with Discrepancy-Aware Collaboration", ICML 2023.

    (1)  y <- y - lr grad F_k(y; b)         from x^t
    (2)  w_k ~ relu(p_k - a d_k + b)        p_k = n_k / n, d_k the discrepancy of client k's labels: parts/aggregators/disco.py
    (3)  x^{t+1} = sum_k w_k y_k            p_k and d_k over the clients of the round

Keeps: the weights sum to one and are at least zero.
Reduces to: FedAvg with a = b = 0.
Departs: on other methods it is the rule --aggregator=disco, which replaces the weights of the model's mean alone: FedNova's effective steps
and the duals of FedDyn and FedDC stay what they are. The histograms are known to the server from set-up; their one number is not counted.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.aggregators.disco import PAPER, Metric, disco
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Method, Task


@method(family="aggregation", paper=PAPER, year=2023, refuses={"aggregator": "its weights are the method"})
def feddisco(task: Task, work: Work, *, a: NonNegative = 0.5, b: NonNegative = 0.1, metric: Metric = "kl", target: tuple[float, ...] = ()) -> Method:
    """FedAvg with weights that fall with the distance of a client's labels from a target distribution.

    Args:
      a: how much the distance counts; 0 to 1.
      b: what every client's weight is raised by.
      metric: kl is divided by its sum over the round's clients; l2 and cosine are as they are.
      target: the target distribution, a number a class; uniform by default.
    """

    def init_server(key, params, census):
        if not census.classes:
            raise ValueError(f"'feddisco' needs examples with labels; task '{task.name}' has none")
        return params

    rule = disco(a, b, metric=metric, target=target)  # (2), (3)
    return Method(local_sgd(task, work), init_server=init_server, aggregate={"model": rule}, steps=work.steps)  # (1)
