"""FedLEx: an exploration before training says which coordinates clients move; the others are nearly frozen.

"Federated Loss Exploration for Improved Convergence on Non-IID Data", IJCNN 2024.

Before the first round, with all N clients:
    (1)  w^0 = x^0 after one epoch of plain averaging, weighted by p_i
    (2)  the scouts train from w^0 until `patience` epochs in a row bring no lower loss, or for `cap` epochs: s_i
    (3)  V_l = mean_i (s_{i,l} - w^0_l)^2 entry by entry, for each tensor l
         G_l = (V_l - min V_l) / (max V_l - min V_l), or (V_l - median V_l) / IQR V_l cut to [0, 1]; 1 where that divides by zero
In every round, from x = w^0:
    (4)  y <- y - optimizer(G * grad F(y; b)), or y - G * optimizer(grad F(y; b))             K_i steps from y = x^t
    (5)  m <- beta m + sum_i p_i (y_i - x^t)          x^{t+1} = x^t + server_lr m             p_i = n_i / sum_S n_j
    (6)  guidance=cohort: G of this round from the scouts of the clients drawn

Keeps: every G_l has minimum 0 and maximum 1 by (max - min); where G = 0 plain SGD never moves a coordinate.
Reduces to: FedAvgM with mask_on=nothing.
Departs: the loss that patience watches is the training loss of an epoch, and s_i is the last iterate. Under (6) the server has what
the scouts sent before.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, local_sgd, weigh
from fedjax_lab.parts.once import once, tell
from fedjax_lab.parts.oracles.patient import descend_patiently
from fedjax_lab.parts.servers.optimizers import momentum
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Federated Loss Exploration for Improved Convergence on Non-IID Data"


class Guided(NamedTuple):
    """params: x.  G: the guidance.  scouts: bool [N], who explores."""

    params: Tree
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
    fixed = guidance == "fixed"
    if not fixed and scouts < 1:
        raise ValueError(f"'fedlex' guidance=cohort needs the scouts of every client: scouts={scouts}; choose scouts=1 or guidance=fixed")

    def init_server(key, params, census):
        order = jax.random.permutation(key, census.clients)
        return Guided(params, jax.tree.map(jnp.ones_like, params), order < max(1, round(scouts * census.clients)))

    def scout(key, message, row, data):
        w, mine = message["model"], message["scouts"][data.id]
        plan = batches(key, data, work._replace(epochs=cap, local_steps=0))
        plan = plan._replace(steps=jnp.where(mine, plan.steps, 0))
        s = descend_patiently(plan, w, gradient(task), work.optimizer, cap, patience)  # (2)
        square = jax.tree.map(lambda s, w: (s - w) ** 2, s, w)
        return Result({"square": square}, mine * weigh("uniform", data), () if fixed else square)

    def remind(key, message, square, data):
        return Result({"square": square}, weigh("uniform", data), square)

    def guide(key, server, aggregate, cohort):
        return server._replace(G=guidance_of(aggregate["square"], scale))  # (3)

    def local(key, message, row, data):
        x, G = message["model"], message["G"]
        times = optax.stateless(lambda v, params: jax.tree.map(jnp.multiply, G, v))
        chain = {"gradient": (times, work.optimizer), "update": (work.optimizer, times), "nothing": (work.optimizer,)}[mask_on]
        y = descend(batches(key, data, work), x, gradient(task), optax.chain(*chain))  # (4)
        return Result({"model": tree.sub(y.params, x)}, weigh(weighting, data), row, metrics={"loss": y.loss})

    def advance(key, server, aggregate, cohort):
        return server._replace(params=tree.add(server.params, aggregate["model"]))

    base = stateful(local, advance, None, None if fixed else tree.zeros_like, ("G",), init_server=init_server, steps=work.steps,
                    down={"G": known()} if fixed else {})
    average = once(base, local_sgd(task, work._replace(epochs=1, local_steps=0), weighting), serve=advance)  # (1)
    search = once(base, scout, ("model", "scouts"), serve=guide, down={"scouts": known()})
    again = base.phase(local=remind, broadcast=lambda server, id, clock: {}, up={"square": known()}, down={}, serve=guide)  # (6)
    phases = (average,) * warm + (search, tell(base, "G") if fixed else again, base.phase())
    return served(base._replace(phases=phases), momentum(lr=server_lr, beta=beta))  # (5)
