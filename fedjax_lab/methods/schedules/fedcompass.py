"""FedCompass: a scheduler gives clients as many steps as let them arrive in groups.

Li, Chaturvedi, He, Chen, Singh, Kindratenko, Huerta, Kim, Madduri, "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous
Client Devices Using a Computing Power-Aware Scheduler", ICLR 2024, Algorithms 1 and 2.

    (1)  u_i = y_i - w^v                                 y_i after the Q_i steps that the scheduler assigned, from w^v, sent after v updates
    (2)  w <- w + (1 / N) sum_group alpha s(n - v_i) u_i     n updates when the group is consumed, s(u) = (u + 1)^-a, N clients in all

Keeps: a client counts 1 / N whatever the size of its group.
Reduces to: FedAvg (uniform) of all clients with server_lr = alpha at equal speeds, once every client's first upload is consumed.
Departs: u is the change, minus the card's D. The public code raises s to +a, which counts the stale more; this is the paper's. Who is in
a group, and Q_i, are the schedule's (compass), whose most steps are local_steps.
"""
from __future__ import annotations

from typing import NamedTuple

import jax

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import local_sgd, mass, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.staleness import Staleness, worth
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Task, Tree

PAPER = "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing Power-Aware Scheduler"


class Silos(NamedTuple):
    """params: the model;  members: clients with examples, float32 scalar."""

    params: Tree
    members: jax.Array


@method(family="schedules", paper=PAPER, year=2024, schedule="compass", lr=1e-3, local_steps=100, batch_size=64, client_optimizer="adam")
def fedcompass(task: Task, work: Work, *, alpha: Positive = 0.9, staleness: Staleness = "polynomial", a: NonNegative = 0.5,
               b: NonNegative = 4.0) -> Method:
    """Clients get steps by their speed, arrive in groups, and count less the staler they are.

    Args:
      alpha: step of the server along the discounted mean change.
      staleness: how an upload's worth falls with the updates since its start.
      a: how fast; 0.5 in the paper.
      b: up to how many updates hinge counts in full.
    """
    train = local_sgd(task, work)

    def local(key, message, client, data):
        found = train(key, message, client, data)  # (1)
        return weighted(found.upload, alpha * worth(staleness, data.staleness, a, b) * weigh("uniform", data), metrics=found.metrics)

    def serve(key, server, aggregate, cohort):
        d = shared(aggregate, server.members)
        return server._replace(params=stepped(d, aggregate["model"], server.params))  # (2)

    def init_server(key, params, census):
        return Silos(params, mass("uniform", census))

    return summed(local, init_server=init_server, broadcast=lambda server, client, clock: {"model": server.params}, serve=serve, steps=work.steps,
                  deploy=lambda server: server.params)
