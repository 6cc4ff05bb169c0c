"""FRL: clients rank the edges of a random network, and the server counts their votes.

Mozaffari, Shejwalkar, Houmansadr, "Every Vote Counts: Ranking-Based Training of Federated Learning to Resist Poisoning Attacks", USENIX
Security 2023.

    (1)  weights W = sign sqrt(2 / fan_in), drawn once; in every layer the share `keep` with the largest |s| is used, the rest is zero
    (2)  s <- s - lr_t (sign(s) W dF/dweight), lr_t = lr (1 + cos(pi t / K_i)) / 2 at step t;  dweight/ds goes straight through the choice
    (3)  a client sends its ballot, the places of a layer's edges from the least |s| to the largest
    (4)  places are summed, and the edge of rank j in the order of the sums gets v_j;  v = sort(s^0), of the layer

Keeps: sort(s) = v in every round; one ballot moves a sum of places by less than the layer has edges; the order of clients does not matter.
Reduces to: the one ballot itself where all are the same.
Departs: the released code chooses by |s| and ranks s, so that the least ranked edges are used too (rank=raw); here both are by |s|, and s^0
is drawn above zero. Vectors stay what they are at the start: zeros for biases. The paper lowers its rate, --set=lr_decay=0.999. A ballot
that is no ranking counts as the order of what it says.
"""
from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, gradient, loop
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.gram import ranks
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.parts.transforms.factored import through
from fedjax_lab.parts.wires import codes
from fedjax_lab.parts.wires.plain import plain
from fedjax_lab.parts.wires.topk import Kept
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Result, Streaming, Task, Tree, Wire

BALLOT = "a message is a ranking"


def places(scores: jax.Array) -> jax.Array:
    """int32 of the shape of scores: 0 for the least."""
    return ranks(scores.ravel()).reshape(scores.shape).astype(jnp.int32)


def votes() -> Streaming:
    """The sum of the places, each upload taken as a ranking of its tensors' entries."""

    def zero(value, weight):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), value)

    def add(acc, value, weight):
        return jax.tree.map(lambda a, v: a + jnp.where(weight > 0, places(v), 0), acc, value)

    return Streaming(zero, add, tree.add, lambda acc: acc)


def ballots(of=lambda field: field) -> Wire:
    """n whole numbers below n for every tensor of n entries in `of` the field; the rest is known."""
    return plain(lambda code: sum(leaf.size * codes.index_bits(leaf.size) for leaf in jax.tree.leaves(of(code))))


def masked(task: Task, keep: float, signed: bool) -> Task:
    """The task of parameters {"scores": {path: tensor}, "frozen": the model's}, which uses the edges with the largest |scores|; see (1)."""
    scored = [path for path, leaf in paths(jax.eval_shape(task.init, jax.random.key(0))).items() if len(leaf.shape) > 1]
    if not scored or statistics.present(task):
        raise ValueError(f"'frl' needs a model with matrices or kernels and without normalization statistics; task '{task.name}' is none")

    def init(key):
        params, low = task.init(key), -1.0 if signed else 0.0
        leaves = paths(params)
        fan_in = {k: math.prod(leaves[k].shape[:-1]) for k in scored}
        W = [jnp.sign(leaf) * math.sqrt(2 / fan_in[k]) if k in fan_in else leaf for k, leaf in leaves.items()]
        draw = keys.purpose(key, "scores")
        scores = {k: (low + (1 - low) * jax.random.uniform(keys.purpose(draw, k), leaves[k].shape)) / math.sqrt(fan_in[k]) for k in scored}
        return {"scores": scores, "frozen": jax.tree.unflatten(jax.tree.structure(params), W)}

    def used(s):
        size = jnp.abs(s)
        last = jnp.sort(jax.lax.stop_gradient(size).ravel())[s.size - max(1, round(keep * s.size))]
        return jnp.where(size >= last, 1.0, 0.0) + (size - jax.lax.stop_gradient(size))

    def model(params):
        leaves = paths(params["frozen"])
        edges = {k: leaves[k] * used(s) for k, s in params["scores"].items()}
        return jax.tree.unflatten(jax.tree.structure(params["frozen"]), list({**leaves, **edges}.values()))

    return through(task, init, model)  # (1)


@method(family="communication", paper="Every Vote Counts: Ranking-Based Training of Federated Learning to Resist Poisoning Attacks", year=2023,
        lr=0.4, epochs=2, batch_size=8, client_optimizer="momentum:momentum=0.9,weight_decay=0.0001",
        refuses={"wire_up": BALLOT, "wire_down": BALLOT, "aggregator": "the places are summed", "server": "no step is taken along a ranking"})
def frl(task: Task, work: Work, *, keep: Kept = 0.5, rank: Literal["size", "raw"] = "size") -> Method:
    """Clients vote on which weights of a random network are used.

    Args:
      keep: share of a layer's edges that is used.
      rank: edges by |s|, or by s as the released code does.
    """
    chosen = masked(task, keep, rank == "raw")
    size = jnp.abs if rank == "size" else lambda s: s

    def local(key, message, client, data):
        start, plan = message["model"], batches(key, data, work)

        def direction(key, s, batch):
            loss, v, _ = gradient(chosen)(key, {**start, "scores": s}, batch)
            return loss, v["scores"]

        def step(t, key, batch, carry):
            s, state, total = carry
            loss, v = direction(key, s, batch)
            update, state = work.optimizer.update(v, state, s)
            rate = (1 + jnp.cos(jnp.pi * t / jnp.maximum(plan.steps, 1))) / 2
            return optax.apply_updates(s, tree.scale(rate, update)), state, total + loss  # (2)

        first = (start["scores"], work.optimizer.init(start["scores"]), 0 * jnp.sum(plan.steps, dtype=jnp.float32))
        s, _, total = loop(plan, first, step)
        ballot = jax.tree.map(lambda s: places(size(s)), s)  # (3)
        return Result({"model": ballot}, weigh("uniform", data), metrics={"loss": total / jnp.maximum(plan.steps, 1)})

    def serve(key, server, aggregate, cohort):
        def dealt(s: jax.Array, votes: jax.Array) -> jax.Array:
            return jnp.sort(s.ravel())[places(votes)]  # (4)

        scores: Tree = jax.tree.map(dealt, server["scores"], aggregate["model"])
        return tree.select(heard(cohort) > 0, {**server, "scores": scores}, server)

    return Method(local, serve=serve, aggregate={"model": votes()}, up={"model": ballots()}, down={"model": ballots(lambda model: model["scores"])},
                  steps=work.steps, task=chosen)
