"""FedPer: federated base layers under personal heads.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019.

    (1)  (phi, h_i) <- (phi, h_i) - lr grad F(phi, h_i; b)     jointly, from phi = phi^t and the client's h_i
    (2)  phi^{t+1} = sum_i n_i phi_i / sum_i n_i               h_i stays, and client i is evaluated with (phi^{t+1}, h_i)

Keeps: no personal leaf is ever sent; a client that does not take part keeps its h_i.
Reduces to: training alone, where every leaf is personal.
Departs: h_i starts from the initialization that all share. The personal leaves are those with the word in their path.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms.split import cut, split
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Task

PAPER = "Federated Learning with Personalization Layers"


@method(family="personalization", paper=PAPER, year=2019, stateful=True)
def fedper(task: Task, work: Work, *, personal: str = "head", weighting: Weighting = "examples") -> Method:
    """FedAvg of the lower layers; every client keeps a head of its own.

    Args:
      personal: a word in the path of the leaves that stay at home.
      weighting: clients count by their examples, or all alike.
    """
    halves = cut(task, lambda params: named(params, personal))
    return split(Method(local_sgd(task, work, weighting), steps=work.steps), halves)  # (1), (2)
