"""pFedGate: every client has a gate of its own that picks and weighs blocks of the shared model, within what it can afford.

Chen, Yao, Gao, Ding, Li, "Efficient Personalized Federated Learning via Sparse Model-Adaptation", ICML 2023.

    (1)  every tensor in up to `blocks` contiguous blocks; g in (0, 1)^L, a gate's mean over a batch of inputs, not below
         s_min = min(max(1 / blocks, 0.1), s_i);  parts/gates.py
    (2)  k = the blocks of greatest value within s_i of the parameters, first blocks always      value round(10 g), or of (g + d / sum d) / 2
    (3)  theta_i = theta * (m k), block by block; m = g, or numbers of a second layer, for which g learns by k + g - stop(g)
    (4)  theta <- theta - lr grad_theta F(theta_i; b), gate <- gate - gate_lr grad_gate F(theta_i; b), each cut at the length `limit`;
         in one step, or a pass of the gate, a pass of theta
    (5)  theta^{t+1} = sum_i n_i theta_i / sum_i n_i over the cohort                             gates are never sent

Keeps: no batch keeps more than s_i of the parameters; a block that is dropped has no gradient.
Reduces to: FedAvg where g is 1 and s_i = 1.
Departs: a client is evaluated with the blocks that its gate picks from all its training examples, where the paper picks anew for each test
batch; the gate's batch normalization takes the batch's own moments there too. Since k changes from batch to batch, theta goes down whole;
up go the blocks that changed, a bit each to say which. Tensors of at most two axes and the others are two knapsacks.
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, loop, with_stats
from fedjax_lab.parts import gates
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.turns import in_turns
from fedjax_lab.parts.wires.plain import counted, known
from fedjax_lab.parts.wires.topk import Kept
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "Efficient Personalized Federated Learning via Sparse Model-Adaptation"


@method(family="personalization", paper=PAPER, year=2023, stateful=True, batch_size=128,
        refuses={"wire_up": "only blocks that changed are sent"})
def pfedgate(task: Task, work: Work, *, sparsity: tuple[Kept, ...] = (0.5,), blocks: Count = 5, gate_lr: Positive = 0.1,
             value: Literal["gate", "sized"] = "gate", separate: bool = False, mode: Literal["joint", "turns"] = "joint",
             limit: Positive = 10.0, weighting: Weighting = "examples") -> Method:
    """FedAvg of a model of which every client trains the blocks that a gate of its own picks.

    Args:
      sparsity: shares of the parameters that clients 0, 1, .. can afford, repeated over the clients.
      blocks: how many every tensor is cut into, at most.
      gate_lr: rate of the gate.
      value: what a block is worth: what the gate says, or the mean of that and its share of the parameters.
      separate: blocks are weighed by numbers of their own, not by what picks them.
      mode: gate and model are trained by one step, or in turns, pass by pass.
      limit: greatest length of either gradient.
      weighting: clients count by their examples, or all alike.
    """
    made = gates.blocks(jax.eval_shape(task.init, jax.random.key(0)), blocks)
    if gates.least(made) > min(sparsity):
        raise ValueError(f"'pfedgate' keeps the first block of every tensor, {gates.least(made):.3g} of '{task.name}'; sparsity {min(sparsity):g} is less")
    worth, names = made.size / made.size.sum(), ("pick", "weigh") if separate else ("pick",)

    def adapted(theta, gate, batch, share):
        found = gates.opened(gate, batch)
        g = jnp.maximum(found["pick"], jnp.minimum(max(1 / blocks, 0.1), share))  # (1)
        k = made.kept(jax.lax.stop_gradient(g if value == "gate" else (g + worth) / 2), share)  # (2)
        by = found["weigh"] * (k + g - jax.lax.stop_gradient(g)) if separate else g * k
        return made.spread(by, theta)  # (3)

    def cut(v):
        return tree.scale(jnp.minimum(1, limit / jnp.maximum(tree.norm(v), 1e-12)), v)

    def shared(client):
        return jnp.asarray(sparsity, jnp.float32)[client % len(sparsity)]

    def local(key, message, gate, data):
        x, rule = message["model"], optax.sgd(gate_lr)
        plan = in_turns(key, data, work, "gate") if mode == "turns" else batches(key, data, work)

        def step(t, key, batch, carry):
            theta, gate, state, total = carry
            second, batch = batch if mode == "turns" else (None, batch)
            of = jax.value_and_grad(lambda both: task.loss(adapted(*both, batch, shared(data.id)), batch, key), has_aux=True)
            (loss, aux), (v, u) = of((theta, gate))
            update, new_state = work.optimizer.update(cut(v), state, theta)
            new, opened = with_stats(optax.apply_updates(theta, update), aux.stats), optax.apply_updates(gate, rule.update(cut(u), rule.init(gate))[0])  # (4)
            if mode == "turns":
                new, new_state, opened = tree.select(second, (new, new_state, gate), (theta, state, opened))
            return new, opened, new_state, total + loss

        theta, gate, _, total = loop(plan, (x, gate, work.optimizer.init(x), 0 * jnp.sum(plan.steps, dtype=jnp.float32)), step)
        change, weight = tree.sub(theta, x), weigh(weighting, data)
        bits = jnp.sum(jnp.where(made.changed(change), 32 * made.size, 0)) + made.size.size
        return Result({"model": change, "bits": bits}, weight, gate, metrics={"loss": total / jnp.maximum(plan.steps, 1)})  # (5)

    def init_client(key, params, facts):
        inputs = facts.example.get("x")
        if inputs is None or not (jnp.issubdtype(inputs.dtype, jnp.floating) or inputs.dtype == jnp.uint8):
            raise ValueError(f"'pfedgate' needs inputs 'x' that a gate can read, images or numbers; those of '{task.name}' are {inputs}")
        return gates.gate(keys.purpose(key, "gate"), inputs.shape, made.size.size, names)

    def personal(key, theta, gate, data):
        return adapted(theta, gate, data.train.whole(), shared(data.id))

    return Method(local, init_client=init_client, personal=personal, up={"model": known(), "bits": counted()},
                  steps=lambda size: (1 + (mode == "turns")) * work.steps(size))
