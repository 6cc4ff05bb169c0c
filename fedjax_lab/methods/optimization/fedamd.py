"""FedAMD: some of the sampled clients refresh their anchor gradients, the others train along the mean anchor.

Wu, Guo, Qu, He, Liu, Gao, "Anchor Sampling for Federated Learning with Partial Client Participation", ICML 2023.

    (1)  v_i = grad F_i(x^0) for all N clients, once                             v = (1 / N) sum_j v_j
    (2)  a sampled client is an anchor with probability p_t, else a miner, by a coin of its own
         p_t = p, or sequential: 1 in rounds 0, 2, .. and 0 in rounds 1, 3, ..
    (3)  anchor:  v_i <- grad F_i(x^t), on all of its examples; it does not move the model
    (4)  miner:   q <- q + grad F(y_k; b) - grad F(y_{k-1}; b), y_{k+1} = y_k - lr q    from q = v, y_{-1} = y_0 = x^t, one batch b
    (5)  x^{t+1} = x^t + server_lr mean_miners (y_i - x^t)                       optionally of (y_i - x^t) / K_i
    (6)  v <- v + (1 / N) sum_anchors (v_i' - v_i), which miners see from the next round on

Keeps: v is the mean of all v_i; a round without miners leaves x alone; miners' v_i stay.
Reduces to: gradient descent in every second round, with full participation, one step and p = sequential.
Departs: v_i lies in the row of client i and stands for the server's table. The large batch of (3) is all of a client's examples. Coins
come from the client's id and the round, so that the server, which draws them, sends v to miners only.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.moving import scaled, stepped
from fedjax_lab.parts.once import once
from fedjax_lab.parts.oracles.directions import full_gradient, full_loss_and_gradient
from fedjax_lab.parts.oracles.recursive import recursive
from fedjax_lab.parts.wires.plain import unless_zero
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Anchor Sampling for Federated Learning with Partial Client Participation"


class Anchored(NamedTuple):
    """params: the model x.  v: the mean anchor.  seed: uint32, of the coins of all rounds."""

    params: Tree
    v: Tree
    seed: jax.Array


@method(family="optimization", paper=PAPER, year=2023, stateful=True,
        refuses={"wire_up": "its anchors do not send the field that it would act on"})
def fedamd(task: Task, work: Work, *, p: Literal["sequential"] | Share = 0.2, server_lr: Positive = 1.0, per_step: bool = False) -> Method:
    """Anchors renew gradients, miners descend along them with recursive variance reduction.

    Args:
      p: probability that a sampled client is an anchor, or sequential for rounds of anchors and rounds of miners in turn.
      server_lr: step of the server along the miners' mean change.
      per_step: whether a miner's change is divided by its number of steps.
    """

    def mines(seed, client, clock):  # (2)
        if isinstance(p, str):
            return clock % 2 == 1
        return ~jax.random.bernoulli(keys.for_client(jax.random.fold_in(jax.random.key(seed), clock), client), p)

    def first(key, message, v_i, data):
        own = full_gradient(key, task, message["model"], data, work)  # (1)
        return Result({"anchor": own}, 1.0, own)

    def broadcast(server, client, clock):
        mining = mines(server.seed, client, clock)
        return {"model": server.params, "v": tree.select(mining, server.v, tree.zeros_like(server.v)), "mining": mining}

    def local(key, message, v_i, data):
        x, mining, plan = message["model"], message["mining"], batches(key, data, work)
        plan = plan._replace(steps=jnp.where(mining, plan.steps, 0))
        y, loss = recursive(plan, task, x, message["v"], work.optimizer)  # (4)
        there, fresh = full_loss_and_gradient(key, task, x, data, work, wanted=~mining)  # (3)
        v_i, news = tree.select(mining, (v_i, tree.zeros_like(v_i)), (fresh, tree.sub(fresh, v_i)))
        change = scaled(1 / jnp.maximum(plan.steps, 1) if per_step else 1, tree.sub(y, x))
        weight = {"model": jnp.where(mining, weigh("uniform", data), 0), "anchor": 1.0}
        return Result({"model": change, "anchor": news}, weight, v_i, metrics={"loss": loss + there})

    def refresh(server, aggregate, cohort):
        return server._replace(v=tree.axpy(1 / cohort.clients, aggregate["anchor"], server.v))

    def serve(key, server, aggregate, cohort):
        return refresh(server, aggregate, cohort)._replace(params=stepped(server_lr, aggregate["model"], server.params))  # (5), (6)

    method = Method(
        local, broadcast=broadcast, serve=serve, aggregate={"anchor": rules.total()}, steps=work.steps, deploy=lambda server: server.params,
        up={"model": unless_zero(), "anchor": unless_zero()}, down={"v": unless_zero()},
        init_server=lambda key, params, census: Anchored(params, tree.zeros_like(params), jax.random.bits(key, dtype=jnp.uint32)),
        init_client=lambda key, params, facts: tree.zeros_like(params),
    )
    ask = once(method, first, serve=lambda key, server, aggregate, cohort: refresh(server, aggregate, cohort), aggregate=method.aggregate)
    return method._replace(phases=(ask, method.phase()))
