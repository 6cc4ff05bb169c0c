"""FLoRA: the clients' adapters are stacked, which adds up their products without an error, and merged into the base.

Wang, Shen, He, Sun, Wang, Lyu, Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024.

    (1)  A_i [r_i, in] random and B_i [out, r_i] = 0, anew in every round; W_i = W + s (B_i A_i)^T           parts/transforms/lowrank.py
    (2)  (A_i, B_i) by local training, from fresh optimizer state
    (3)  A_s = [p_1 A_1; p_2 A_2; ..],  B_s = [B_1, B_2, ..],  p_i = n_i / sum_j n_j: the weights on A alone, or they would be squared
    (4)  W <- W + s (B_s A_s)^T = W + s sum_i p_i (B_i A_i)^T,  at the server and at every client

Keeps: what a client sends has r_i (in + out) numbers per matrix.
Reduces to: local LoRA merged after every round with one client.
Departs: adapts every matrix by default, where the paper has query and value (--set=where=query/value), and has no dropout before A.
Where not all take part, the p_i are of those heard, and a client that was away receives all stacks that it missed, or the dense change where
that is smaller.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.transforms.base import beside
from fedjax_lab.parts.transforms.lowrank import Sites, Start, dealt, fresh, leaves_of, over, replaced, rows, sites
from fedjax_lab.parts.wires.plain import known, plain
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree, Wire

PAPER = "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"
OWN = "clients rebuild the base from what was stacked"


class Merged(NamedTuple):
    """params: W.  stacked: int32, the ranks stacked so far.  seen: int32 [N], those that each client had when it was last heard."""

    params: Tree
    stacked: jax.Array
    seen: jax.Array


@method(family="finetuning", paper=PAPER, year=2024, lr=3e-4, batch_size=128, client_optimizer="adamw",
        refuses={"wire_down": OWN, "aggregator": "factors of different bases have no mean", "server": OWN})
def flora(task: Task, work: Work, *, ranks: Annotated[tuple[int, ...], Range(1)] = (16,), scale: Positive = 2.0,
          where: tuple[str, ...] = (), whole: tuple[str, ...] = (), start: Start = "kaiming", weighting: Weighting = "examples") -> Method:
    """Low-rank adapters of any ranks, stacked by the server and merged into the model after every round.

    Args:
      ranks: r_i, dealt to the clients in turn by their ids: 16/8/4.
      scale: s = alpha_i / r_i, the same for all.
      where: words, one of which is in the path of an adapted matrix; all matrices but tables of embeddings where none is given.
      whole: words, one of which is in the path of a leaf that is trained as it is, such as a new head, and averaged.
      start: A's rows, kaiming (uniform within 1 / sqrt(in)) or orthogonal.
      weighting: clients count by their examples, or all alike.
    """
    at, model, most = sites(task, where, whole), over(task, scale), max(ranks)

    def local(key, message, client, data):
        base = message["base"]
        a, b = fresh(keys.purpose(key, "fresh"), at, most, start)
        mine = jnp.arange(most)[:, None] < message["rank"]  # a row that is zero in A and in B has no gradient
        first = {"a": {path: jnp.where(mine, x, 0) for path, x in a.items()}, "b": b, "whole": leaves_of(base, at)}  # (1)
        y = descend(batches(key, data, work), first, gradient(beside(model, {"base": base})), work.optimizer)  # (2)
        return Result({"model": y.params}, weigh(weighting, data), metrics={"loss": y.loss})

    def serve(key, server, aggregate, cohort):
        stack, leaves = aggregate["model"], paths(server.params)
        p, up = stack.shares, stack.uploads
        stacked_a = {path: p[:, None, None] * x for path, x in up["a"].items()}  # (3)
        new = {path: leaves[path] + scale * jnp.einsum("cri,cor->io", x, up["b"][path]) for path, x in stacked_a.items()}  # (4)
        new |= {path: jnp.where(stack.empty, leaves[path], mean) for path, mean in stack.mixed(p)["whole"].items()}
        stacked = server.stacked + jnp.sum(jnp.where(cohort.mask, dealt(ranks, cohort.ids), 0))
        seen = server.seen.at[jnp.where(cohort.mask, cohort.ids, cohort.clients)].set(server.stacked, mode="drop")
        return Merged(replaced(server.params, new), stacked, seen)

    def broadcast(server, client, clock):
        return {"base": server.params, "behind": server.stacked - server.seen[client], "rank": dealt(ranks, client)}

    def init_server(key, params, census):
        return Merged(params, jnp.int32(0), jnp.zeros(census.clients, jnp.int32))

    up = {"model": rows()} if len(set(ranks)) > 1 else {}
    return Method(local, init_server=init_server, broadcast=broadcast, serve=serve, aggregate={"model": together()}, up=up,
                  down={"base": known(), "behind": _stacks(task, at)}, steps=work.steps, deploy=lambda server: server.params)


def _stacks(task: Task, at: Sites) -> Wire:
    """Counts the stacks of so many ranks, or the dense change where that has fewer numbers, and the leaves that are trained whole."""
    like = paths(jax.eval_shape(task.init, jax.random.key(0)))
    dense, rest = (float(sum(like[path].size for path in some)) for some in (at.matrices, at.whole))

    def bits(behind):
        return 32 * jnp.where(behind > 0, jnp.minimum(behind.astype(jnp.float32) * at.sides, dense) + rest, 0)

    return plain(bits)
