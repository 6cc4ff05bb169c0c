"""FedLEx: an exploration before training says which coordinates clients move; the others are nearly frozen.

"Federated Loss Exploration for Improved Convergence on Non-IID Data", IJCNN 2024.

Before the first round, with all N clients:
    (1)  w^0 = x^0 after one epoch of plain averaging
    (2)  the scouts train from w^0 until `patience` epochs bring no lower loss, or for `cap` epochs: s_i
    (3)  V_l = mean_i (s_{i,l} - w^0_l)^2 entry by entry, for each tensor l
         G_l = (V_l - min V_l) / (max V_l - min V_l), or (V_l - median V_l) / IQR V_l cut to [0, 1]; 1 where that divides by zero
In every round:
    (4)  y <- y - optimizer(G * grad F(y; b)), or y - G * optimizer(grad F(y; b))             K_i steps from y = x^t
    (5)  m <- beta m + sum_i p_i (y_i - x^t)          x^{t+1} = x^t + server_lr m             p_i = n_i / sum_S n_j
    (6)  guidance=cohort: G of this round from the scouts of the clients drawn

Keeps: every G_l has minimum 0 and maximum 1 by (max - min); where G = 0 plain SGD never moves a coordinate.
Reduces to: FedAvgM with mask_on=nothing.
Departs: the loss that patience watches is the training loss of an epoch. Under (6) the server has what the scouts sent before.
"""
from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient, loop, with_stats
from fedjax_lab.parts.clients import Weighting, local_sgd, weigh
from fedjax_lab.parts.moving import moving, scaled, stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.half import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Share
from fedjax_lab.types import ClientData, Key, Method, Phase, Result, Task, Tree

PAPER = "Federated Loss Exploration for Improved Convergence on Non-IID Data"


class Guided(NamedTuple):
    """params: x.  m: the server's momentum.  G: the guidance.  scouts: bool [N], who explores."""

    params: Tree
    m: Tree
    G: Tree
    scouts: jax.Array


def guidance_of(V: Tree, scale: str) -> Tree:
    """(3), tensor by tensor."""

    def one(v):
        low, high = (jnp.min(v), jnp.max(v)) if scale == "range" else jnp.quantile(v, jnp.array([0.25, 0.75]))
        base = low if scale == "range" else jnp.median(v)
        span = jnp.where(high > low, high - low, 1)
        inside = jnp.where(v - base < span, jnp.maximum((v - base) / span, 0), 1)  # the compiler's division may miss 1 by a rounding
        return jnp.where(high > low, inside, 1)

    return jax.tree.map(one, V)


def explore(key: Key, task: Task, x: Tree, data: ClientData, work: Work, wanted: jax.Array, cap: int, patience: int) -> Tree:
    """s_i of (2); x itself where not wanted."""
    plan = batches(key, data._replace(allowance=jnp.int32(jnp.iinfo(jnp.int32).max)), work._replace(epochs=cap, local_steps=0))
    plan = plan._replace(steps=jnp.where(wanted, plan.steps, 0))
    per_epoch = jnp.maximum(plan.steps // cap, 1)

    def step(t, key, batch, carry):
        y, state, total, best, bad = carry
        loss, v, stats = gradient(task)(key, y, batch)
        update, new = work.optimizer.update(v, state, y)
        going = bad < patience
        y, state = tree.select(going, (with_stats(optax.apply_updates(y, update), stats), new), (y, state))
        total, over = total + loss, (t + 1) % per_epoch == 0
        bad = jnp.where(over & going, jnp.where(total < best, 0, bad + 1), bad)
        return y, state, jnp.where(over, 0, total), jnp.where(over, jnp.minimum(best, total), best), bad

    zero = 0 * jnp.sum(plan.steps)
    start = (x, work.optimizer.init(x), 0.0 * zero, jnp.inf + zero, zero)
    return loop(plan, start, step)[0]


@method(family="optimization", paper=PAPER, year=2024, refuses={"server": "its server step is part of the method"})
def fedlex(task: Task, work: Work, *, scouts: Share = 1.0, cap: Count = 150, patience: Count = 40, warm: bool = True,
           scale: Literal["range", "iqr"] = "range", guidance: Literal["fixed", "cohort"] = "fixed",
           mask_on: Literal["gradient", "update", "nothing"] = "gradient", beta: Share = 0.9, server_lr: Positive = 1.0,
           weighting: Weighting = "examples") -> Method:
    """FedAvgM along coordinates that an exploration before training found worth moving.

    Args:
      scouts: share of the clients that explores, at least one.
      cap: the most epochs of exploration.
      patience: epochs without a lower loss after which a scout stops.
      warm: average one epoch of everybody before the exploration.
      scale: how a tensor's squared changes become values in [0, 1].
      guidance: the same in all rounds, or of the drawn clients' scouts; then all must have explored.
      mask_on: what the guidance multiplies; under Adam a mask on gradients acts through exact zeros only.
      beta: server momentum.
      server_lr: step of the server along its momentum.
      weighting: clients count by their examples, or all alike.
    """
    if guidance == "cohort" and scouts < 1:
        raise ValueError(f"'fedlex' guidance=cohort needs the scouts of every client: scouts={scouts}; choose scouts=1 or guidance=fixed")

    def init_server(key, params, census):
        count = max(1, round(scouts * census.clients))
        order = jax.random.permutation(key, census.clients)
        return Guided(params, tree.zeros_like(params), jax.tree.map(jnp.ones_like, params), order < count)

    def scout(key, message, row, data):
        mine, w = message["scouts"][data.id], message["model"]
        s = explore(key, task, w, data, work, mine, cap, patience)
        square = jax.tree.map(lambda a, b: (a - b) ** 2, s, w)  # (3)
        return Result({"square": square}, mine.astype(jnp.float32), square if guidance == "cohort" else ())

    def remind(key, message, square, data):
        return Result({"square": square}, weigh("uniform", data), square)

    def conclude(key, server, aggregate, cohort):
        return server._replace(G=guidance_of(aggregate["square"], scale))

    def local(key, message, row, data):
        x, G, slope = message["model"], message["G"], gradient(task)

        def masked(key, y, batch):
            loss, v, stats = slope(key, y, batch)
            return loss, jax.tree.map(jnp.multiply, G, moving(v)), stats

        optimizer = optax.chain(work.optimizer, _times(G)) if mask_on == "update" else work.optimizer
        y = descend(batches(key, data, work), x, masked if mask_on == "gradient" else slope, optimizer)  # (4)
        return Result({"model": tree.sub(y.params, x)}, weigh(weighting, data), row, metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        m = tree.axpy(beta, scaled(1.0, server.m), aggregate["model"])
        return server._replace(params=stepped(server_lr, m, server.params), m=moving(m))  # (5)

    def client(x):
        return tree.zeros_like(x) if guidance == "cohort" else ()

    method = stateful(local, serve, None, client, ("G",), init_server=init_server, steps=work.steps,
                      down={"G": known()} if guidance == "fixed" else {})
    return method._replace(phases=(*before(method, scout, conclude, task, work, warm, guidance),
                                   *([method.phase(local=remind, broadcast=lambda server, id, clock: {}, up={"square": known()}, down={},
                                                   serve=conclude)] if guidance == "cohort" else []),
                                   method.phase()))


def before(method: Method, scout: Any, conclude: Any, task: Task, work: Work, warm: bool, guidance: str) -> list[Phase]:
    """The exchanges with everyone at the start of round 0: (1), (2), and G told to all where it stays."""
    once = {"everyone": True, "when": lambda key, clock: clock == 0, "up": {}}
    average = method.phase(**once, broadcast=lambda server, id, clock: {"model": server.params}, local=_rowed(local_sgd(task, work._replace(epochs=1, local_steps=0))), down={},
                           serve=lambda key, server, aggregate, cohort: server._replace(params=tree.add(server.params, aggregate["model"])))  # (1)
    search = method.phase(**once, local=scout, serve=conclude, down={"scouts": known()},
                          broadcast=lambda server, id, clock: {"model": server.params, "scouts": server.scouts})
    tell = method.phase(**once, broadcast=lambda server, id, clock: {"G": server.G}, down={},
                        local=lambda key, message, row, data: Result({}, 0.0, row), serve=lambda key, server, aggregate, cohort: server)
    return [*([average] if warm else []), search, *([tell] if guidance == "fixed" else [])]


def _rowed(local: Any) -> Any:
    """A stateless client function that keeps its row."""
    return lambda key, message, row, data: local(key, message, row, data)._replace(client=row)


def _times(G: Tree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, G, updates))
