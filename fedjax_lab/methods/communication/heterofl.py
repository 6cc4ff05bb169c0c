"""HeteroFL: clients train narrow models that lie inside the wide one.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR 2021.

    (1)  client i holds the first ceil(r_i C) units of every hidden layer of C units
    (2)  y <- y - lr grad F(y; b)                     from what it holds of x^t, by SGD with momentum
    (3)  in (2) every hidden layer's W z + b is divided by r_i (the scaler), and the logits of labels the client does not have are zero
    (4)  x^{t+1}[j] = mean of y_i[j] over the clients that hold entry j; those of the output layer only over clients with the label

Keeps: an entry that nobody of the round holds is as it was; a client's masked model is the narrow model itself.
Reduces to: FedAvg with widths=1 and labels=false.
Departs: batch normalization takes each batch's own statistics in training, as in the paper; what it has for evaluation is the mean of the
clients' running statistics, where the paper asks all clients for them once more. The wide model is evaluated, at the largest of the widths.
"""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.transforms.factored import through
from fedjax_lab.parts.widths import chain
from fedjax_lab.parts.wires.plain import counted, known
from fedjax_lab.parts.wires.topk import Kept
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Result, Task

PAPER = "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients"


@method(family="communication", paper=PAPER, year=2021, client_optimizer="momentum:0.9",
        refuses={"wire_up": "only what a client holds is sent", "wire_down": "only what a client holds is sent",
                 "aggregator": "every entry has holders of its own"})
def heterofl(task: Task, work: Work, *, widths: tuple[Kept, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625), redrawn: bool = False, scaler: bool = True,
             labels: bool = True, head: str = "head", seed: int = 0, weighting: Weighting = "uniform") -> Method:
    """FedAvg of models of several widths, each a part of the next wider one.

    Args:
      widths: shares of the units of hidden layers; of clients 0, 1, .., repeated over the clients.
      redrawn: every client's width is drawn anew in every round.
      scaler: divide hidden layers by the width in training.
      labels: whether a client leaves the logits and the outputs of labels alone that it does not have.
      head: a word in the path of the output layer.
      seed: of the widths that are drawn.
      weighting: clients count all alike, or by their examples.
    """
    layers = chain("heterofl", task, head)
    kept = np.array([[math.ceil(r * units - 1e-9) for units in layers.units] for r in widths], np.int32)  # (1)
    outputs, sums = layers.marked(layers.outputs), layers.marked(layers.sums)

    def level(client, clock):
        if not redrawn:
            return client % len(widths)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), clock), client)
        return jax.random.randint(key, (), 0, len(widths))

    def held(k):
        return layers.held(jnp.asarray(kept)[k])

    def bits(k):
        return 32 * jnp.asarray([layers.entries(units) for units in kept], jnp.int32)[k]

    def narrow(k, known_labels) -> Task:
        """The task on what a client holds; see (3)."""
        mask, r = held(k), jnp.asarray(widths, jnp.float32)[k] if scaler else 1.0
        inner = through(task, task.init, lambda y: jax.tree.map(lambda y, m, s: jnp.where(m, y / r if s else y, 0), y, mask, sums))

        def loss(params, batch, key):
            value, aux = inner.loss(params, batch, key)
            outputs = inner.apply(params, batch, key)
            if not labels or outputs.shape[-1] != known_labels.shape[-1]:
                return value, aux
            each = task.metrics(jnp.where(known_labels, outputs, 0), batch)["loss"]
            return jnp.sum(jnp.where(batch["mask"], each, 0)) / jnp.maximum(jnp.sum(batch["mask"]), 1), aux

        return inner._replace(loss=loss)

    def local(key, message, client, data):
        k, mine = level(data.id, data.clock), data.counts > 0
        mask = held(k)
        x = jax.tree.map(lambda x, m: jnp.where(m, x, 0), message["model"], mask)
        end = descend(batches(key, data, work), x, gradient(narrow(k, mine)), work.optimizer)  # (2)
        weight = weigh(weighting, data)

        def share(mask, leaf, is_output):
            mine_too = mine if is_output and labels and leaf.shape[-1:] == mine.shape else True
            return weight * (mask & mine_too)

        shares = jax.tree.map(share, mask, x, outputs)
        return Result({"model": tree.sub(end.params, x), "bits": bits(k)}, {"model": shares, "bits": weight}, metrics={"loss": end.loss})

    def deploy(x):
        return jax.tree.map(lambda x, m: jnp.where(m, x, 0), x, held(int(np.argmax(widths)))) if max(widths) < 1 else x

    wires = {"model": known(), "bits": counted()}
    return Method(local, broadcast=lambda x, client, clock: {"model": x, "bits": bits(level(client, clock))}, up=wires, down=wires,
                  steps=work.steps, deploy=deploy)  # (4) is the mean change, entry by entry
