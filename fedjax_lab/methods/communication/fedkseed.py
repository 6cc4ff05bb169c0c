"""FedKSeed: a model tuned along random directions that a few seeds stand for, with scalars for messages.

Qin, Chen, Qian, Ding, Li, Deng, "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes",
ICML 2024.

    (1)  z_j ~ N(0, I) of seed j, j < K;    x^t = x^0 - sum_j a_j z_j, which a client rebuilds from a
    (2)  a step draws j, rho = [F(y + eps z_j; b) - F(y - eps z_j; b)] / (2 eps), y <- y - lr rho z_j, G_j <- G_j + lr rho
    (3)  a <- a + sum_i n_i G_i / sum_i n_i
    (4)  Pro: j is drawn with the softmax of I_j, scaled to [0, 1] over the seeds; I_j is the mean of |rho|, cut at `limit`, over the whole
         history of seed j, and 0 where it has none

Keeps: y = x^t - sum_j G_j z_j, so x^{t+1} is the mean of the clients' models; the size of a message does not depend on the model's.
Reduces to: a line search along one direction with K = 1.
Departs: a and G hold lr rho where the paper has rho, so that the rate may change from round to round. The server rebuilds x^t for all: no
message has it. Pro's clients also send how often and how far each seed went, 2 K numbers more.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches, loop
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes"


class Seeds(NamedTuple):
    """params: x.  start: x^0.  a: [K].  seed: uint32, of all directions.  size, draws: [K], sums of |rho| and how often; () without Pro."""

    params: Tree
    start: Tree
    a: jax.Array
    seed: jax.Array
    size: jax.Array | tuple[()] = ()
    draws: jax.Array | tuple[()] = ()


def direction(seed: jax.Array, j: jax.Array, like: Tree) -> Tree:
    """z_j, zero where no gradient moves a leaf."""
    key = jax.random.fold_in(jax.random.key(seed), j)
    moves = paths(tree.trainable(like))
    z = [jax.random.normal(keys.purpose(key, k), x.shape, x.dtype) if moves[k] else jnp.zeros_like(x) for k, x in paths(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), z)


def moved(start: Tree, seed: jax.Array, a: jax.Array) -> Tree:
    """start - sum_j a_j z_j, one direction at a time."""
    return jax.lax.fori_loop(0, a.size, lambda j, x: tree.axpy(-a[j], direction(seed, j, start), x), start)


def logits(size: jax.Array, draws: jax.Array) -> jax.Array:
    """[K] of (4)."""
    mean = size / jnp.maximum(draws, 1)
    span = jnp.max(mean) - jnp.min(mean)
    return jnp.where(span > 0, (mean - jnp.min(mean)) / jnp.where(span > 0, span, 1), 0)


@method(family="communication", paper=PAPER, year=2024, plain_sgd="along one random direction a step", lr=0.001, local_steps=200, batch_size=1,
        refuses={"wire_up": "its messages are scalars", "wire_down": "its messages are scalars", "aggregator": "its messages are scalars",
                 "server": "clients rebuild the model from the sum of all scalars"})
def fedkseed(task: Task, work: Work, *, seeds: Count = 4096, eps: Positive = 5e-4, pro: bool = False, limit: Positive = 1000.0,
             weighting: Weighting = "examples") -> Method:
    """Zeroth-order training along directions of K seeds; a message is a number for each seed.

    Args:
      seeds: K, how many directions there are.
      eps: how far the loss is probed along a direction.
      pro: draw directions that changed the loss much more often.
      limit: what |rho| counts for at most in that.
      weighting: clients count by their examples, or all alike.
    """

    def local(key, message, client, data):
        plan, seed = batches(key, data, work), message["seed"]
        preference = logits(message["size"], message["draws"]) if pro else jnp.zeros(seeds)

        def step(t, key, batch, carry):
            y, G, size, draws, total = carry
            j = jax.random.categorical(keys.purpose(key, "seed"), preference)
            z = direction(seed, j, y)
            up, down = (task.loss(tree.axpy(e, z, y), batch, None)[0] for e in (eps, -eps))
            rho = (up - down) / (2 * eps)
            rate = work.lr * rho
            size, draws = size.at[j].add(jnp.minimum(jnp.abs(rho), limit)), draws.at[j].add(1)
            return tree.axpy(-rate, z, y), G.at[j].add(rate), size, draws, total + (up + down) / 2  # (2)

        none = jnp.zeros(seeds) + 0 * jnp.sum(plan.steps)
        _, G, size, draws, total = loop(plan, (message["model"], none, none, none, none[0]), step)
        upload = {"scalars": G, **({"size": size, "draws": draws} if pro else {})}
        weight = {"scalars": weigh(weighting, data), **({"size": 1.0, "draws": 1.0} if pro else {})}
        return Result(upload, weight, metrics={"loss": total / jnp.maximum(plan.steps, 1)})

    def serve(key, server, aggregate, cohort):
        a = server.a + aggregate["scalars"]  # (3)
        server = server._replace(params=moved(server.start, server.seed, a), a=a)  # (1)
        return server._replace(size=server.size + aggregate["size"], draws=server.draws + aggregate["draws"]) if pro else server  # (4)

    def broadcast(server, client, clock):
        return {"model": server.params, "scalars": server.a, "seed": server.seed, **({"size": server.size, "draws": server.draws} if pro else {})}

    def init_server(key, params, census):
        return Seeds(params, params, jnp.zeros(seeds), jax.random.bits(key), *([jnp.zeros(seeds)] * 2 if pro else ()))

    return Method(local, init_server=init_server, broadcast=broadcast, serve=serve, down={"model": known()}, steps=work.steps,
                  aggregate={"size": rules.total(), "draws": rules.total()}, deploy=lambda server: server.params)
