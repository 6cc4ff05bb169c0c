"""FedStale: stale changes of absent clients, with a weight.

Rodio, Neglia, "FedStale: Leveraging Stale Client Updates in Federated Learning", ECAI 2024.

    (1)  u_i = y_i - x^t                                                          K_i steps of SGD from x^t, for i in A_t
    (2)  u = sum_{A_t} (p_i / q_i) u_i + beta [sum_j p_j h_j - sum_{A_t} (p_i / q_i) h_i]
    (3)  x^{t+1} = x^t + server_lr u                                              p_i = n_i / sum_j n_j over ALL clients
    (4)  h_i <- u_i for i in A_t, after (2)
    (5)  1 / q_i, where it is not given: FedAU's running mean of i's intervals, from rounds before t

Keeps: E[u | state] = sum_i p_i E[u_i] for every beta; the server's running sum is sum_j p_j h_j; the absent keep their h_i.
Reduces to: unbiased FedAvg with beta = 0, FedVARP with beta = 1; with q_i = 1 the h drop out for every beta.
Departs: h_i lies in the row of client i and stands for the server's table, as in FedVARP. In a round without clients the formula still
moves x, the released code does not: `empty` chooses.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax

from fedjax_lab import rules, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import intervals
from fedjax_lab.parts.clients import Weighting, heard, mass, weigh
from fedjax_lab.parts.cohorts.drawn import Probabilities, repeated
from fedjax_lab.parts.moving import moving, stepped, summed
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedStale: leveraging stale client updates in federated learning"


class Stale(NamedTuple):
    """params: the model x.  h: sum_j p_j h_j over all clients, times mass.  mass: float32, the sum of all clients' weights."""

    params: Tree
    h: Tree
    mass: jax.Array


class Memory(NamedTuple):
    """A client's row: its last change h, and the record of its participations."""

    h: Tree
    record: intervals.Intervals


@method(family="optimization", paper=PAPER, year=2024, stateful=True)
def fedstale(task: Task, work: Work, *, beta: Share = 0.5, server_lr: Positive = 1.0, q: Probabilities | None = None,
             cutoff: Annotated[int, Range(0)] = 0, empty: Literal["move", "skip"] = "move", weighting: Weighting = "examples") -> Method:
    """Unbiased averaging of those present plus a share of what the absent sent last.

    Args:
      beta: weight of the stale changes; small for alike clients of very unequal probability, 1 for unlike ones.
      server_lr: step of the server.
      q: probabilities of clients 0, 1, .., repeated over the clients; by default 1 / q is estimated.
      cutoff: in the estimate an absence of so many rounds counts as an interval; 0 for none.
      empty: whether a round without clients moves the model along the stale changes.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, row, data):
        record = intervals.before(row.record, data.clock, cutoff)
        inverse = record.mean if q is None else 1 / repeated(q, data.id)  # (5)
        y = descend(batches(key, data, work), message["model"], gradient(task), work.optimizer)
        u, p = tree.sub(y.params, message["model"]), weigh(weighting, data)  # (1)
        upload = {"model": u, "stale": row.h, "news": tree.sub(moving(u), row.h)}
        row = Memory(moving(u), intervals.after(record, data.clock))  # (4)
        return Result(upload, {"model": p * inverse, "stale": p * inverse, "news": p}, row, metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        stale = tree.sub(server.h, aggregate["stale"])
        u = tree.axpy(beta, stale, aggregate["model"])  # (2)
        x = stepped(server_lr / server.mass, u, server.params)  # (3)
        x = tree.select(heard(cohort) > 0, x, server.params) if empty == "skip" else x
        return server._replace(params=x, h=tree.add(server.h, aggregate["news"]))

    def server(x, people):
        return Stale(x, tree.zeros_like(x), mass(weighting, people))

    def client(x):
        return Memory(tree.zeros_like(x), intervals.never())

    sums = {"model": summed(), "stale": rules.total(), "news": rules.total()}
    return stateful(local, serve, server, client, aggregate=sums, up={"stale": known(), "news": known()}, steps=work.steps)
