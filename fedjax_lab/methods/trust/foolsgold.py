"""FoolsGold: clients whose changes, summed over all rounds, point the same way are taken for one attacker under many names.

Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020.

    (1)  H_i <- H_i + D_i                                   D_i = y_i - x by FedAvg's local training
    (2)  S_ij = cos(H_i, H_j), S_ii = 0, among who was heard;  v_i = max_j S_ij
    (3)  S_ij <- S_ij v_i / v_j where v_i < v_j             the pardon: who resembles an attacker less than that one resembles others
    (4)  a_i = 1 - max_j S_ij in [0, 1], divided by the largest;  1 becomes 0.99;  a_i <- ln(a_i / (1 - a_i)) + 0.5 in [0, 1]
    (5)  x <- x + server_lr sum_i a_i D_i / sum_i a_i       or divided by the number heard

Keeps: the scale of a client's change does not enter its weight.
Reduces to: the plain mean of changes that are orthogonal to each other.
Departs: compares whole models, where the paper may weigh the features of the last layer. One attacker alone is not found, and honest
clients whose data are alike are taken for one.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.local import Work
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.parts.gram import combined, gram, norms, scaled
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Task, Tree

PAPER = "The Limitations of Federated Learning in Sybil Settings"
TINY = 1e-12


class State(NamedTuple):
    """params: x;  history: [N, ...], the sum of every client's changes."""

    params: Tree
    history: Tree


def trust(history: Tree, heard: jax.Array) -> jax.Array:
    """[S]: a_i of (4), from the summed changes [S, ...] of those heard; 0 for the others."""
    units = scaled(1 / jnp.maximum(norms(history), TINY), history)
    pairs = heard[:, None] & heard[None] & ~jnp.eye(heard.shape[0], dtype=bool)
    s = jnp.where(pairs, gram(units), jnp.where(jnp.eye(heard.shape[0], dtype=bool), 0, -jnp.inf))  # (2)
    v = jnp.max(s, 1)
    pardoned = pairs & (v[:, None] < v[None])
    s = jnp.where(pardoned, s * v[:, None] / jnp.where(pardoned, v[None], 1), s)  # (3)
    a = jnp.where(heard, jnp.clip(1 - jnp.max(s, 1), 0, 1), 0)
    a = a / jnp.maximum(jnp.max(a), TINY)
    a = jnp.where(a >= 1, 0.99, a)
    return jnp.where(heard & (a > 0), jnp.clip(jnp.log(jnp.maximum(a, TINY) / (1 - a)) + 0.5, 0, 1), 0)  # (4)


@method(family="trust", paper=PAPER, year=2020, refuses={"aggregator": "its weights are its rule"})
def foolsgold(task: Task, work: Work, *, server_lr: Positive = 1.0, divide: Literal["trust", "clients"] = "trust") -> Method:
    """FedAvg, where clients that always move together lose their weight.

    Args:
      server_lr: step of the server.
      divide: by the sum of the weights a_i, or by the number of clients heard, as the paper does.
    """

    def serve(key, state, aggregate, cohort):
        uploads, weights = aggregate["model"]
        heard = weights > 0
        at = jnp.where(heard, cohort.ids, cohort.clients)
        history = jax.tree.map(lambda h, d: h.at[at].add(d, mode="drop"), state.history, uploads)  # (1)
        a = trust(jax.tree.map(lambda h: h[cohort.ids], history), heard)
        total = jnp.sum(a) if divide == "trust" else jnp.sum(heard)
        return State(stepped(server_lr, combined(a / jnp.maximum(total, TINY), uploads), state.params), history)  # (5)

    def start(params, census):
        return State(params, jax.tree.map(lambda p: jnp.zeros((census.clients, *p.shape), p.dtype), params))

    return stateful(local_sgd(task, work), serve, start, steps=work.steps, aggregate={"model": together()})
