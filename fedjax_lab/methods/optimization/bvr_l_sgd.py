"""BVR-L-SGD: one worker at a time takes variance-reduced local steps along a global direction that all of them keep fresh.

Murata, Suzuki, "Bias-Variance Reduced Local SGD for Less Heterogeneous Federated Learning", ICML 2021.

    (1)  v^t = (1 / N) sum_i grad F_i(x^t)                                     every `stage` rounds, from all N clients
    (2)  v^t = v^{t-1} + (1 / N) sum_i mean_b [grad F(x^t; b) - grad F(x^{t-1}; b)]      in the other rounds, over the K_i batches of a round
    (3)  q <- q + grad F(y_k; b) - grad F(y_{k-1}; b), one batch b; y_{k+1} = y_k - lr q      from q = v^t, y_{-1} = y_0 = x^t, K_i steps
    (4)  x^{t+1} = y_i of the one client i that was drawn for the round

Keeps: where all batches are full, v^t is the gradient of the mean objective at x^t.
Reduces to: gradient descent with rate lr, with one local step and stage = 1.
Departs: the participation draws the worker of (4): a cohort of one is the paper's algorithm, and of several the mean of their y is
taken, as in minibatches of workers. Clients count alike.
"""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.oracles.directions import full_gradient
from fedjax_lab.parts.oracles.recursive import mean_difference, recursive
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Bias-Variance Reduced Local SGD for Less Heterogeneous Federated Learning"


class Reduced(NamedTuple):
    """params: x^t.  previous: x^{t-1}.  v: the global direction."""

    params: Tree
    previous: Tree
    v: Tree


@method(family="optimization", paper=PAPER, year=2021)
def bvr_l_sgd(task: Task, work: Work, *, stage: Count = 10) -> Method:
    """Everybody refreshes a global gradient estimate, the drawn client descends along it with recursive variance reduction.

    Args:
      stage: rounds from one full gradient of all clients to the next.
    """

    def opens(key, clock):
        return clock % stage == 0

    def measure(key, message, client, data):
        return Result({"gradient": full_gradient(key, task, message["model"], data, work)}, weigh("uniform", data))

    def compare(key, message, client, data):
        plan = batches(key, data, work)
        return Result({"news": mean_difference(plan, task, message["model"], message["previous"])}, weigh("uniform", data))

    def local(key, message, client, data):
        y, loss = recursive(batches(key, data, work), task, message["model"], message["v"], work.optimizer)  # (3)
        return Result({"model": tree.sub(y, message["model"])}, weigh("uniform", data), metrics={"loss": loss})

    def restart(key, server, aggregate, cohort):
        return server._replace(v=aggregate["gradient"])  # (1)

    def refresh(key, server, aggregate, cohort):
        return server._replace(v=tree.add(server.v, aggregate["news"]))  # (2)

    def serve(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]), previous=server.params)  # (4)

    method = stateful(local, serve, lambda x, census: Reduced(x, x, tree.zeros_like(x)), sends=("v",), steps=work.steps)
    ask = method.phase(local=measure, broadcast=lambda server, client, clock: {"model": server.params}, serve=restart, everyone=True, when=opens)
    keep = ask._replace(local=compare, serve=refresh, when=lambda key, clock: ~opens(key, clock), down={"previous": known()},
                        broadcast=lambda server, client, clock: {"model": server.params, "previous": server.previous})
    return method._replace(phases=(ask, keep, method.phase()))
