"""FED-PUB: clients with subgraphs get mixtures of each other's models, by what these make of the same random graph, through masks of their own.

Baek, Jeong, Jin, Yoon, Hwang, "Personalized Subgraph Federated Learning", ICML 2023.

    (1)  (y, m) <- (y, m) - Adam( grad CE(y * m) + l1 |m|_1 + l2 sum_layers |y - b_k|_2 )       from y = b_k and the client's own mask m
    (2)  h_k = mean over the nodes of a proxy graph of the features that y * m gives them, entries |m| < l1 taken as zero
    (3)  S_kj = exp(s cos(h_k, h_j)) / sum_j exp(s cos(h_k, h_j)),   b_k = sum_j S_kj y_j
    (4)  x = sum_k n_k y_k / sum_k n_k                                    n_k labeled nodes

Keeps: the rows of S sum to one; masks stay at home.
Reduces to: FedAvg with equal weights for every client's own model with sharpness = 0, masked = false and l2 = 0.
Departs: the features are what the model's head reads, one smoothing and a ReLU after the paper's. Adam's memory stays with the client from
round to round, as in the published code, and so does that of any other client_optimizer. There is no term with l2 in the first round.
Kernels have masks, biases have none. `legacy` gives the two regularizers no slope, as the published code does. The proxy graph has five
blocks of 100 nodes, with 10% of the edges inside of them; for a task without graphs it is 500 examples, drawn as the nodes are.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, loop
from fedjax_lab.parts import split
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.lengths import unit
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Batch, Census, Key, Method, Result, Task, Tree

MIXED = "every client gets a mixture of its own"
BLOCKS, NODES, DENSITY = 5, 100, 0.1


class Server(NamedTuple):
    """params: x;  own: [N, ...], b_k;  proxy: the batch of (2);  similarity: [N, N], S of those who were last together."""

    params: Tree
    own: Tree
    proxy: Batch
    similarity: jax.Array


class Row(NamedTuple):
    """masks: {path of a kernel: m};  memory: the optimizer's."""

    masks: Mapping[str, jax.Array]
    memory: Tree


def proxy(key: Key, census: Census) -> dict[str, jax.Array]:
    """A batch of one random graph, or of as many random examples as it has nodes."""
    count, graph = BLOCKS * NODES, "edges" in census.example
    shape = (1, count, *census.example["x"].shape[1:]) if graph else (count, *census.example["x"].shape)
    batch = {"x": jax.random.normal(keys.purpose(key, "proxy"), shape), "mask": jnp.ones(shape[0], bool)}
    if not graph:
        return batch
    rng = np.random.default_rng(0)
    ends = np.concatenate([b * NODES + np.argwhere(np.triu(rng.random((NODES, NODES)) < DENSITY, 1)) for b in range(BLOCKS)])
    return {**batch, "edges": jnp.asarray(np.concatenate([ends, ends[:, ::-1]])[None], jnp.int32)}


@method(family="modalities", paper="Personalized Subgraph Federated Learning", year=2023, stateful=True, lr=0.01, batch_size="full",
        client_optimizer="adam", refuses={"aggregator": MIXED, "server": MIXED, "wire_down": MIXED})
def fedpub(task: Task, work: Work, *, sharpness: NonNegative = 3.0, l1: NonNegative = 1e-3, l2: NonNegative = 1e-3, masked: bool = True,
           legacy: bool = False) -> Method:
    """Every client trains a mixture of all models, most of those that are like its own, under a mask that nobody else has.

    Args:
      sharpness: s, how much more those weigh who are alike.
      l1: weight of the masks' absolute sum, and below what a mask's entry is taken as zero.
      l2: weight of the distance from the mixture, layer by layer.
      masked: whether the masks, which start from one, are trained.
      legacy: no slope of the two regularizers.
    """
    split.demand("fedpub", task)
    first_work = work.at(0) if work.decays else work  # whose memory has the structure that it has in later rounds

    def under(y, masks):
        leaves = [x * masks.get(path, 1) for path, x in paths(y).items()]
        return jax.tree.unflatten(jax.tree.structure(y), leaves)

    def sparse(masks):
        return jax.tree.map(lambda m: jnp.where(jnp.abs(m) < l1, 0, m), masks)

    def local(key, message, row, data):
        bar, plan = message["model"], batches(key, data, work)

        def objective(pair, batch, key):
            loss = task.loss(under(*pair), batch, key)[0]
            square = [jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (pair[0], bar)), strict=True)]
            far = sum(jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0) for s in square)
            thick = sum(jnp.sum(jnp.abs(m)) for m in pair[1].values())
            return loss + (0 if legacy else l1 * thick + jnp.where(data.clock > 0, l2, 0) * far), loss

        def step(t, key, batch, carry):
            pair, memory, total = carry
            slope, loss = jax.grad(objective, has_aux=True)(pair, batch, key)
            update, memory = work.optimizer.update(slope, memory, pair)
            y, masks = optax.apply_updates(pair, update)  # (1)
            return (y, masks if masked else pair[1]), memory, total + loss

        (y, masks), memory, total = loop(plan, ((bar, row.masks), row.memory, 0.0 * plan.steps), step)
        z = task.features(under(y, sparse(masks)), message["proxy"])
        h = jnp.mean(z.reshape(-1, z.shape[-1]), 0)  # (2)
        weight = jnp.where(data.size > 0, jnp.maximum(jnp.sum(data.counts), data.size), 0)
        return Result({"model": tree.sub(y, bar), "h": h}, weight, Row(masks, memory), metrics={"loss": total / jnp.maximum(plan.steps, 1)})

    def serve(key, server, aggregate, cohort):
        stack, h = aggregate["model"], unit(aggregate["h"].uploads)
        there = stack.weights > 0
        S = jnp.where(there, jnp.exp(sharpness * (h @ h.T)), 0)
        S = S / jnp.maximum(jnp.sum(S, 1, keepdims=True), jnp.finfo(S.dtype).tiny)  # (3)
        ys = jax.tree.map(lambda own, change: own[cohort.ids] + change, server.own, stack.uploads)
        into = jnp.where(there, cohort.ids, cohort.clients)
        own = jax.tree.map(lambda old, y: old.at[into].set(jnp.tensordot(S, y, 1), mode="drop"), server.own, ys)
        params = tree.select(stack.empty, server.params, stack._replace(uploads=ys).mixed(stack.shares))  # (4)
        return server._replace(params=params, own=own, similarity=server.similarity.at[into[:, None], into[None]].set(S, mode="drop"))

    def init_server(key, params, census):
        if "x" not in census.example:
            raise ValueError(f"'fedpub' needs examples with inputs 'x'; task '{task.name}' has {', '.join(sorted(census.example))}")
        own = jax.tree.map(lambda x: jnp.broadcast_to(x, (census.clients, *x.shape)), params)
        return Server(params, own, proxy(key, census), jnp.zeros((census.clients, census.clients)))

    def init_client(key, params, facts):
        masks = {path: jnp.ones_like(x) for path, x in paths(params).items() if x.ndim > 1}
        return Row(masks, first_work.optimizer.init((params, masks)))

    def broadcast(server, client, clock):
        return {"model": jax.tree.map(lambda x: x[client], server.own), "proxy": server.proxy}

    def personal(key, server, row, data):
        return under(jax.tree.map(lambda x: x[data.id], server.own), sparse(row.masks))

    return Method(local, init_server, init_client, broadcast, serve, {"model": together(), "h": together()}, down={"proxy": known()},
                  deploy=lambda server: server.params, personal=personal, steps=work.steps)
