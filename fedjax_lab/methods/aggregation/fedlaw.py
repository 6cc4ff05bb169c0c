"""FedLAW: the server learns the weights of the mean, and how much to shrink it, on a small labelled set.

Li, Lin, Shang, Wu, "Revisiting Weighted Aggregation in Federated Learning with Neural Networks", ICML 2023.

    (1)  y_i <- y_i - lr grad F_i(y_i; b)                 from x^t
    (2)  m(a, g) = exp(g) sum_i softmax(a)_i y_i          a_i = log p_i and g = 0 at first, in every round
         m(a, g) = g^2 sum_i (a_i^2 / sum_j a_j^2) y_i    the form "quad", a_i^2 = p_i and g = 1 at first
    (3)  (a, g) <- (a, g) - Adam(grad CE(m(a, g); b))     for `server_epochs` epochs of the public set
    (4)  x^{t+1} = m(a, g)

Keeps: the weights are at least zero and sum to exp(g).
Reduces to: FedAvg with server_epochs = 0.
Departs: the form "quad" begins at p as the other does, where the card has equal weights. With order = apart a is learned in the first half
of the epochs, and what (4) takes is its average from epoch 6 on, which the published code computes and does not use; then g. Normalization
statistics are those of m on the last public batch. Where nobody is heard the model stays.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, loop, with_stats
from fedjax_lab.parts import proxy
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive
from fedjax_lab.types import Method, Task, Tree

WEIGHTS = "its weights are the method"
AVERAGED_FROM = 6  # epochs
NOBODY = -1e9  # whose exponential is zero


class Server(NamedTuple):
    """params;  shrinking: float32 scalar, what the weights of the last mean summed to."""

    params: Tree
    shrinking: jax.Array


class Mix(NamedTuple):
    """a [S] and g of (2)."""

    a: jax.Array
    g: jax.Array


@method(family="aggregation", paper="Revisiting Weighted Aggregation in Federated Learning with Neural Networks", year=2023,
        refuses={"aggregator": WEIGHTS, "server": WEIGHTS})
def fedlaw(task: Task, work: Work, *, server_lr: Positive = 0.01, server_epochs: int = 20, server_batch: Count = 128,
           form: Literal["softmax", "quad"] = "softmax", order: Literal["together", "apart"] = "together") -> Method:
    """FedAvg whose mean has learned weights and a learned length; needs public examples with labels.

    Args:
      server_lr: of Adam on the weights; halved every 20 epochs.
      server_epochs: passes over the public examples in a round.
      server_batch: public examples in a step.
      form: how the numbers that are learned become weights.
      order: weights and length are learned together, or the weights in the first half of the epochs and the length in the second.
    """
    soft = form == "softmax"

    def first(p):
        return Mix(jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), NOBODY) if soft else jnp.sqrt(p), jnp.float32(0 if soft else 1))

    def weights(mix):
        return jnp.exp(mix.g) * jax.nn.softmax(mix.a) if soft else mix.g**2 * mix.a**2 / jnp.sum(mix.a**2)

    def model(x, stack, mix):  # (2): the sum over i of w_i (x + change_i)
        w = weights(mix)
        return tree.add(tree.scale(jnp.sum(w), x), stack.mixed(w))

    def learn(key, x, stack, mix, public, epochs, train, average):  # (3)
        plan = proxy.epochs(key, public, epochs, server_batch)
        turns = max(1, -(-public.capacity // server_batch))
        adam = optax.adam(lambda t: server_lr * 0.5 ** (t // (20 * turns)), b1=0.5, b2=0.999)

        def step(t, key, batch, carry):
            mix, state, mean, _ = carry
            grad, aux = jax.grad(lambda m: task.loss(model(x, stack, m), batch, key), has_aux=True)(mix)
            update, state = adam.update(grad, state)
            mix = jax.tree.map(lambda v, u, on: jnp.where(on, v + u, v), mix, update, train)
            late = (t + 1) // turns - AVERAGED_FROM + 1  # epochs whose end counts
            mean = jnp.where(((t + 1) % turns == 0) & (late > 0), mean + (mix.a - mean) / jnp.maximum(late, 1), mean)
            return mix, state, mean, aux.stats

        stats = jax.eval_shape(lambda: task.loss(x, plan.at(jnp.int32(0)), key)[1].stats)
        blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
        mix, _, mean, stats = loop(plan, (mix, adam.init(mix), mix.a, blank), step)
        return mix._replace(a=mean) if average and epochs >= AVERAGED_FROM else mix, stats

    def serve(key, server, aggregate, cohort):
        x, stack = server.params, aggregate["model"]
        mix, stats, public = first(stack.shares), (), proxy.view(cohort.public)
        half = server_epochs // 2
        jobs = [(server_epochs, Mix(True, True))] if order == "together" else [(half, Mix(True, False)), (server_epochs - half, Mix(False, True))]
        for number, (epochs, train) in enumerate(jobs):
            if epochs:
                mix, stats = learn(keys.purpose(key, f"weights{number}"), x, stack, mix, public, epochs, train, not train.g)
        found = with_stats(model(x, stack, mix), stats)  # (4)
        return tree.select(stack.empty, server, Server(found, jnp.sum(weights(mix))))

    def server(params, census):
        proxy.demanded("fedlaw", census)
        return Server(params, jnp.float32(1))

    return stateful(local_sgd(task, work), serve, server, aggregate={"model": together()}, steps=work.steps)  # (1)
