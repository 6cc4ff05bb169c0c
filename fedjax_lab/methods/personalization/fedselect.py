"""FedSelect: clients keep more and more entries of the model to themselves, those that move the most.

Tamirisa, Won, Lu, Arel, Zhou, "FedSelect: Customized Selection of Parameters for Fine-Tuning during Personalized Federated Learning", 2023.

    (1)  y_i <- y_i - lr m_i grad F_i(y_i; b) for a pass, then y_i <- y_i - lr (1 - m_i) grad F_i(y_i; b) for a pass; `epochs` times
    (2)  x[j] = sum_i (1 - m_i[j]) y_i[j] / sum_i (1 - m_i[j]), as it was where nobody shares entry j
    (3)  a client starts from x where its m_i of the last time was 0, and from its own last y_i elsewhere
    (4)  every `period` rounds, after (1): of a matrix' entries with m_i = 0 the share p with the largest |y_i - y_i'| gets m_i = 1 from the
         next round on, y_i' being what y_i was the last time; not where more than `bound` of the matrix is personal

Keeps: an entry that became personal stays so, and no more than bound + p (1 - bound) of a matrix does; vectors are always shared.
Reduces to: FedAvg (uniform) with p = 0.
Departs: a client is evaluated with its last y_i, as after the paper's last round, which has no mean. Clients that were not drawn do not go
on. The mask goes up with an upload, a bit an entry; the server then knows what to send the next time. Normalization statistics are shared.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, gradient, loop, with_stats
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.gram import ranks
from fedjax_lab.parts.oracles.directions import clipped
from fedjax_lab.parts.turns import in_turns
from fedjax_lab.parts.wires.plain import counted, known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedSelect: Customized Selection of Parameters for Fine-Tuning during Personalized Federated Learning"
SHARED, NEW, OWN = 0, 1, 2


class Row(NamedTuple):
    """theta: y_i.  before: y_i'.  part: int8 by entry, SHARED, NEW (personal from now on, its last mean is still to come) or OWN."""

    theta: Tree
    before: Tree
    part: Tree


class Server(NamedTuple):
    """params: x.  bits: int32 [N], what clients shared when they were last heard."""

    params: Tree
    bits: jax.Array


def grown(part: jax.Array, moved: jax.Array, p: float, bound: float) -> jax.Array:
    """part after (4), of one tensor whose entries moved so far."""
    if part.ndim < 2:
        return part
    shared = part == SHARED
    count = jnp.where(jnp.mean(~shared) > bound, 0, jnp.round(p * jnp.sum(shared)))
    return jnp.where(ranks(jnp.where(shared, -moved, jnp.inf).ravel()).reshape(part.shape) < count, jnp.int8(NEW), part)  # (4)


@method(family="personalization", paper=PAPER, year=2023, stateful=True, epochs=15, lr=0.05, batch_size=32,
        refuses={"wire_up": "only what a client shares is sent", "wire_down": "only what a client shares is sent",
                 "aggregator": "every entry has sharers of its own"})
def fedselect(task: Task, work: Work, *, p: Share = 0.25, bound: Share = 0.8, period: Count = 3, clip: Positive = float("inf")) -> Method:
    """FedAvg of the entries that clients still share; they keep those that move the most.

    Args:
      p: share of a matrix' shared entries that becomes personal at a time.
      bound: no more become personal where more than this share of a matrix is.
      period: rounds between two choices.
      clip: largest norm of a gradient, inf for none.
    """
    slope = clipped(gradient(task), clip)

    def alternate(key, y, mine, data):
        def step(u, key, turn, carry):
            (of_shared, batch), (y, state, total) = turn, carry
            loss, v, stats = slope(key, y, batch)
            update, state = work.optimizer.update(v, state, y)
            y = jax.tree.map(lambda y, u, m: y + jnp.where(m != of_shared, u, 0), y, update, mine)  # (1)
            return with_stats(y, stats), state, total + loss

        plan = in_turns(key, data, work, "personal")
        y, _, loss = loop(plan, (y, work.optimizer.init(y), 0 * jnp.sum(plan.steps, dtype=jnp.float32)), step)
        return y, loss / jnp.maximum(plan.steps, 1)

    def local(key, message, row, data):
        y = jax.tree.map(lambda part, own, x: jnp.where(part == OWN, own, x), row.part, row.theta, message["model"])  # (3)
        end, loss = alternate(key, y, jax.tree.map(lambda part: part != SHARED, row.part), data)
        shared = jax.tree.map(lambda part: part == SHARED, row.part)
        change = jax.tree.map(lambda m, a, b: jnp.where(m, a - b, 0), shared, end, y)
        settled = jax.tree.map(lambda part: jnp.where(part == NEW, jnp.int8(OWN), part), row.part)
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b), end, row.before)
        chosen = jax.tree.map(lambda part, far: grown(part, far, p, bound), settled, moved)
        due = (data.clock % period == 0) & (data.clock > 0)
        row = Row(end, *tree.select(due, (end, chosen), (row.before, settled)))
        bits = sum(32 * jnp.sum(m, dtype=jnp.int32) for m in jax.tree.leaves(shared))
        weight = weigh("uniform", data)
        upload = {"model": change, "bits": bits + tree.size(change), "shared": bits}
        return Result(upload, {"model": tree.scale(weight, shared), "bits": weight, "shared": weight}, row, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        stack = aggregate["shared"]
        at = jnp.where(stack.weights > 0, cohort.ids, cohort.clients)
        return Server(tree.add(server.params, aggregate["model"]), server.bits.at[at].set(stack.uploads, mode="drop"))  # (2)

    def init_client(key, params, facts):
        return Row(params, params, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int8), params))

    return Method(local, init_client=init_client, serve=serve, steps=lambda size: 2 * work.steps(size), aggregate={"shared": together()},
                  init_server=lambda key, params, census: Server(params, jnp.full(census.clients, 32 * tree.size(params), jnp.int32)),
                  broadcast=lambda server, client, clock: {"model": server.params, "bits": server.bits[client]},
                  up={"model": known(), "bits": counted(), "shared": known()}, down={"model": known(), "bits": counted()},
                  deploy=lambda server: server.params, personal=lambda key, server, row, data: row.theta)
