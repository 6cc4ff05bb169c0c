"""FedLabel: on every unlabeled example the client's model or the global one teaches, whichever is the more certain.

Cho, Joshi, Dimitriadis, "Local or Global: Selective Knowledge Assimilation for Federated Learning with Limited Labels", ICCV 2023.

    (1)  w <- w - lr grad CE(f(b; w), label)            from w = x^t =: g, over the labeled examples
    (2)  p_l = softmax f(weak(u); w), p_g = softmax f(weak(u); g);  e = argmax of h(p) over {l, g};  l(u) = argmax p_e
         h the variance of the probabilities, or minus their entropy, or the largest
    (3)  w <- w - lr grad [ mean CE(f(strong(u); w), l(u)) over the u with max p_e >= threshold
                            + lam_b mean KL(p_l || p_g) over the u with argmax p_l = argmax p_g ]    over the unlabeled examples, after (1)
         lam_b = lam times the share of the batch where they agree; KL has a slope in p_l only
    (4)  x^{t+1} = x^t + server_lr sum_i n_i (w_i - x^t) / sum_i n_i

Keeps: while w = g the KL and its slope are zero; who is l and who is g does not matter for (2).
Reduces to: FedAvg on the labeled examples with threshold > 1 and lam = 0.
Departs: how lam grows to its value is not recovered; lam_b is the card's, adaptive=false takes lam itself. Each stream has its own epochs,
or with local_steps as many steps each. The optimizer is fresh in (3).
"""
from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient, loop, with_stats
from fedjax_lab.parts import examples, streams
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.transforms.augment import weak_strong
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "Local or Global: Selective Knowledge Assimilation for Federated Learning with Limited Labels"
CERTAINTY = {"variance": lambda p: jnp.var(p, -1), "entropy": lambda p: jnp.sum(jax.scipy.special.xlogy(p, p), -1), "max": lambda p: jnp.max(p, -1)}


def selected(p_l: jax.Array, p_g: jax.Array, score: str) -> jax.Array:
    """p_e [B, C] of (2)."""
    certainty = CERTAINTY[score]
    return jnp.where((certainty(p_l) >= certainty(p_g))[:, None], p_l, p_g)


@method(family="labels", paper=PAPER, year=2023)
def fedlabel(task: Task, work: Work, *, threshold: Positive = 0.95, lam: NonNegative = 1.0, adaptive: bool = True,
             score: Literal["variance", "entropy", "max"] = "variance", weak: str = "", strong: str = "", server_lr: Positive = 1.0,
             weighting: Weighting = "examples") -> Method:
    """Clients train on their labels, then on those that the more certain of the local and the global model gives the other examples.

    Args:
      threshold: the least probability of a label that is believed; above 1 none is.
      lam: weight of the consistency of the local with the global model, where they agree.
      adaptive: it is multiplied by the share of a batch where they agree.
      score: what makes a model the expert.
      weak, strong: augmentations joined by '+'; by default FixMatch's, with noise where inputs are no images.
      server_lr: step along the mean change.
      weighting: clients count by all of their examples, or all alike.
    """

    def local(key, message, client, data):
        g, found = message["model"], streams.streams(data)
        start = descend(batches(key, data, work, found.labeled), g, gradient(task), work.optimizer)  # (1)
        plan = batches(keys.purpose(key, "unlabeled"), data, work, found.unlabeled)

        def step(t, key, batch, carry):
            w, state, sums = carry
            weakly, strongly = weak_strong(keys.purpose(key, "views"), batch, weak or None, strong or None)
            said, target = task.apply(w, weakly), task.apply(g, weakly)
            p = selected(jax.nn.softmax(said), jax.nn.softmax(target), score)  # (2)
            sure, agree = jnp.max(p, -1) >= threshold, (jnp.argmax(said, -1) == jnp.argmax(target, -1)) & batch["mask"]
            share = examples.mean(agree.astype(jnp.float32), batch["mask"]) if adaptive else 1.0

            def objective(w):
                value, aux = streams.taught(task, w, strongly, jnp.argmax(p, -1), sure, key)
                return value + lam * share * examples.mean(examples.between(task.apply(w, weakly), target), agree), aux

            slope, aux = jax.grad(objective, has_aux=True)(w)
            update, state = work.optimizer.update(slope, state, w)
            labels = (said, target, p)
            hits = jnp.stack([examples.mean(sure.astype(jnp.float32), batch["mask"]), *(streams.right(batch, jnp.argmax(q, -1)) for q in labels)])
            return with_stats(optax.apply_updates(w, update), aux.stats), state, sums + hits  # (3)

        zero = jnp.zeros(4) + 0 * jnp.sum(plan.steps, dtype=jnp.float32)  # varies over the mesh as the carry does
        w, _, sums = loop(plan, (start.params, work.optimizer.init(g), zero), step)
        told = dict(zip(("kept", "right_local", "right_global", "right"), sums / jnp.maximum(plan.steps, 1), strict=True))
        return Result({"model": tree.sub(w, g)}, weigh(weighting, data), metrics={"loss": start.loss, **told})

    def init_server(key, params, census):
        streams.demanded("fedlabel", task, census)
        return params

    def serve(key, x, aggregate, cohort):
        return tree.axpy(server_lr, aggregate["model"], x)  # (4)

    return Method(local, init_server=init_server, serve=serve, steps=work.steps)
