"""APFL: a mixture of a client's own model and the shared one.

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, Algorithm 1.

    (1)  w_i <- w_i - lr grad F_i(w_i; b)                                     from w_i = x^t
    (2)  vbar = a_i v_i + (1 - a_i) w_i                                       with w_i before (1)
         v_i <- v_i - lr a_i grad F_i(vbar; b)
    (3)  a_i <- clip(a_i - lr <v_i - w_i, grad F_i(vbar; b)>, 0, 1)           adaptive; all of a step at the same points and on one batch
    (4)  x^{t+1} = sum_i n_i w_i / sum_i n_i                                  client i is evaluated with a_i v_i + (1 - a_i) w_i, w_i its latest

Keeps: the server's path is FedAvg's, whatever a is.
Reduces to: training alone with a = 1; copies of FedAvg's local models with a = 0, adaptive off.
Departs: the paper adapts a_i once a round, its code and this file in every step; the code adds 0.02 a_i to the slope and takes another
gradient, which is not the mixture's. Normalization statistics of v_i are those that the mixture makes.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, gradient, loop, with_stats
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.registry import method
from fedjax_lab.spec import Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Adaptive Personalized Federated Learning"


class Row(NamedTuple):
    """v: the client's own model;  w: its latest local copy of the shared one;  a: float32 scalar, the share of v."""

    v: Tree
    w: Tree
    a: jax.Array

    @property
    def mixture(self) -> Tree:
        return jax.tree.map(lambda v, w: self.a * v + (1 - self.a) * w, self.v, self.w)


@method(family="personalization", paper=PAPER, year=2020, stateful=True)
def apfl(task: Task, work: Work, *, share: Share = 0.5, adaptive: bool = True, weighting: Weighting = "examples") -> Method:
    """FedAvg, and beside it models that mix every client's own with the shared one.

    Args:
      share: of the client's own model in its mixture, at the start; the paper tries 0.25 to 0.75.
      adaptive: whether every client learns its share.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, row, data):
        x, plan, slope = message["model"], batches(key, data, work), gradient(task)

        def step(t, key, batch, carry):
            row, state, own_state, total = carry
            loss, g, stats = slope(key, row.w, batch)
            _, g_mixed, stats_mixed = slope(key, row.mixture, batch)  # (2)
            update, state = work.optimizer.update(g, state, row.w)
            own_update, own_state = work.optimizer.update(tree.scale(row.a, g_mixed), own_state, row.v)
            a = jnp.clip(row.a - work.lr * tree.vdot(tree.sub(row.v, row.w), g_mixed), 0, 1) if adaptive else row.a  # (3)
            v = with_stats(optax.apply_updates(row.v, own_update), stats_mixed)
            return Row(v, with_stats(optax.apply_updates(row.w, update), stats), a), state, own_state, total + loss  # (1)

        row = row._replace(w=x)
        zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
        first = (row, work.optimizer.init(x), work.optimizer.init(row.v), zero)
        row, _, _, total = loop(plan, first, step)
        metrics = {"loss": total / jnp.maximum(plan.steps, 1), "share": row.a}
        return Result({"model": tree.sub(row.w, x)}, weigh(weighting, data), row, metrics=metrics)

    def init_client(key, params, facts):
        return Row(params, params, jnp.float32(share))

    return Method(local, init_client=init_client, steps=work.steps,  # (4) is the mean change
                  personal=lambda key, server, row, data: row.mixture)
