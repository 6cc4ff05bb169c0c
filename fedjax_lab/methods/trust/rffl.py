"""RFFL: a client gets as much of the others' change as its own agrees with it, and who never agrees is left out.

Xu, Lyu, "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial Robustness in Federated Learning", 2021.

    (1)  D_i = clip(y_i - w_i, bound)                         y_i trained from the client's own model w_i
    (2)  g = sum_{i in R} o_i D_i                             o_i ~ n_i in the first round, the reputation r_i later, summing to one
    (3)  r_i <- a r_i + (1 - a) cos(D_i, g), at least 0; 0 outside R; divided by their sum
    (4)  from round `patience` on, out of R for good with r_i < 1 / (3 |R|), and r divided by its sum again
    (5)  q_i = r_i / max_j r_j;  w_i <- w_i + D_i + g, of g in every tensor only the ceil(q_i len) entries that are largest

Keeps: reputations sum to one, and are 0 outside R; every upload has length `bound` at most, the attackers' too.
Reduces to: identical clients all earn q = 1, and their models stay identical.
Departs: a client gets (5) with the next round's message; adds D_i and all of g, as the public code does, where the paper takes the
client's own part out of g; and as global model counts w^0 plus all g, which nobody has.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.gram import combined, cosines, norms, ranks, scaled, shares
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import plain
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range, Share
from fedjax_lab.types import Method, Result, Task, Tree, Wire

PAPER = "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial Robustness in Federated Learning"
TINY = 1e-12


class State(NamedTuple):
    """params: w^0 plus all g;  r: [N] reputations;  inside: bool [N], R;  g: of the last round;  places: of its entries in every tensor,
    the largest first;  earned: [N], q_i of who was heard then, else 0."""

    params: Tree
    r: jax.Array
    inside: jax.Array
    g: Tree
    places: Tree
    earned: jax.Array

    def reward(self, client: jax.Array) -> Tree:
        """What a client earned of the last g."""
        q = self.earned[client]
        return jax.tree.map(lambda v, at: jnp.where(at < jnp.ceil(q * v.size - 1e-4), v, 0), self.g, self.places)  # (5)


def sparse() -> Wire:
    """Entries that are not zero, each with its place, and how many they are."""
    def bits(code):
        return 32 + 64 * sum(jnp.count_nonzero(v) for v in jax.tree.leaves(code))

    return plain(bits)


@method(family="trust", paper=PAPER, year=2021, stateful=True, everyone="since a reward is of the round before",
        refuses={"aggregator": "reputations are its rule", "server": "no model of the server's is sent", "wire_down": "rewards are sparse already"})
def rffl(task: Task, work: Work, *, alpha: Share = 0.95, bound: Positive = 0.5, patience: Annotated[int, Range(0)] = 10) -> Method:
    """Clients with models of their own, rewarded with the part of the mean change that their reputation earns.

    Args:
      alpha: how much of the old reputation stays.
      bound: the greatest length of a change; 0.5 for MNIST, 0.15 for CIFAR-10.
      patience: the first round in which clients are left out.
    """

    def local(key, message, w, data):
        w = tree.add(w, message["reward"])
        y = descend(batches(key, data, work), w, gradient(task), work.optimizer)
        change = tree.sub(y.params, w)
        change = tree.scale(jnp.minimum(1, bound / jnp.maximum(tree.norm(change), TINY)), change)  # (1)
        return Result({"model": change}, data.size.astype(jnp.float32), tree.add(w, change), metrics={"loss": y.loss})

    def serve(key, state, aggregate, cohort):
        uploads, size = aggregate["model"]
        uploads = scaled(jnp.minimum(1, bound / jnp.maximum(norms(uploads), TINY)), uploads)
        there = (size > 0) & state.inside[cohort.ids]
        old = state.r[cohort.ids]
        known = jnp.any(there & (old > 0))
        g = combined(shares(jnp.where(there, jnp.where(known, old, size), 0)), uploads)  # (2)
        at = jnp.where(there, cohort.ids, cohort.clients)
        r = state.r.at[at].set(jnp.maximum(alpha * old + (1 - alpha) * cosines(uploads, g), 0), mode="drop")  # (3)
        r = shares(jnp.where(state.inside, r, 0))
        late = (cohort.clock >= patience) & (r < 1 / (3 * jnp.maximum(jnp.sum(state.inside), 1)))
        inside = state.inside & ~late
        r = shares(jnp.where(inside, r, 0))  # (4)
        heard = jnp.zeros(cohort.clients).at[at].set(1.0, mode="drop")
        places = jax.tree.map(lambda v: ranks(-jnp.abs(v).ravel()).reshape(v.shape), g)
        after = State(tree.add(state.params, g), r, inside, g, places, heard * jnp.where(r == jnp.max(r), 1, r / jnp.maximum(jnp.max(r), TINY)))
        return tree.select(jnp.any(there), after, state._replace(earned=jnp.zeros_like(r)))

    def start(params, census):
        n = census.clients
        places = jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.int32), params)
        return State(params, jnp.zeros(n), jnp.ones(n, bool), tree.zeros_like(params), places, jnp.zeros(n))

    return stateful(local, serve, start, client=lambda params: params, steps=work.steps, aggregate={"model": together()}, down={"reward": sparse()},
                    broadcast=lambda state, client, clock: {"reward": state.reward(client)},
                    personal=lambda key, state, w, data: tree.add(w, state.reward(data.id)))
