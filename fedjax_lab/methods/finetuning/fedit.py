"""FedIT and FFA-LoRA: averages of low-rank adapters on a frozen model.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Chen, "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024.
Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024.

    (1)  W_i = W + s (B_i A_i)^T at every adapted matrix, s = alpha / r;  A random, B = 0 at the start        parts/transforms/lowrank.py
    (2)  (A_i, B_i) by local training from (A, B), from fresh optimizer state
    (3)  A <- sum_i n_i A_i / sum_i n_i,  B <- sum_i n_i B_i / sum_i n_i
    (4)  where ranks differ, client i has the first r_i rows of A and columns of B, and counts in (3) with zeros for the others
    (5)  FFA-LoRA: A is drawn once from a seed that all share and stays as it is; (2) and (3) of B alone

Keeps: the base; a message has r_i (in + out) numbers per matrix, FFA-LoRA's r out. FFA-LoRA's A, and mean(B) A = mean(B A).
Reduces to: local LoRA with one client; FedAvg of the leaves named by `whole`, for them. FedIT's mean(B) mean(A) is not mean(B A).
Departs: adapts every matrix by default, where FedIT's script has the query alone (--set=where=query), and has no dropout before A. What
counts of a text is the data's affair: labels below zero do not. FedIT has one rank for all: (4) is the zero-padding that FLoRA is compared with.
"""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting
from fedjax_lab.parts.transforms.base import averaged
from fedjax_lab.parts.transforms.lowrank import Start, adapted, dealt, rows, sites
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Method, Task, Tree

FEDIT = "Towards Building the Federated GPT: Federated Instruction Tuning"
FFALORA = "Improving LoRA in Privacy-preserving Federated Learning"


@method(family="finetuning", paper=FEDIT, year=2024, lr=3e-4, epochs=10, batch_size=64, client_optimizer="adamw")
def fedit(task: Task, work: Work, *, ranks: Annotated[tuple[int, ...], Range(1)] = (16,), scale: Positive = 1.0, where: tuple[str, ...] = (),
          whole: tuple[str, ...] = (), start: Start = "kaiming", weighting: Weighting = "examples") -> Method:
    """FedAvg of low-rank adapters on a frozen model.

    Args:
      ranks: r_i, dealt to the clients in turn by their ids: 16/8/4.
      scale: s = alpha / r, the same for all.
      where: words, one of which is in the path of an adapted matrix; all matrices but tables of embeddings where none is given.
      whole: words, one of which is in the path of a leaf that is trained as it is, such as a new head.
      start: A's rows, kaiming (uniform within 1 / sqrt(in)) or orthogonal.
      weighting: clients count by their examples, or all alike.
    """
    model = adapted(task, sites(task, where, whole), rank=max(ranks), scale=scale, start=start)  # (1)
    plain = averaged(model, work, weighting)  # (2), (3)
    return _padded(plain, ranks) if len(set(ranks)) > 1 else plain


def _padded(plain: Method, ranks: tuple[int, ...]) -> Method:
    """Of clients that have r_i of all rows and columns; nothing of what they lack is sent, either way."""

    def lacking(client: jax.Array) -> jax.Array:
        return (jnp.arange(max(ranks)) >= dealt(ranks, client)).astype(jnp.float32)

    def without(share: jax.Array, parts: Tree) -> Tree:  # a row that is zero in A and in B has no gradient
        return {**parts, "a": jax.tree.map(lambda x: (1 - share)[:, None] * x, parts["a"]), "b": jax.tree.map(lambda x: (1 - share) * x, parts["b"])}

    def broadcast(server, client, clock):
        message = plain.broadcast(server, client, clock)
        return {**message, "model": without(lacking(client), message["model"])}

    def local(key, message, client, data):
        result = plain.local(key, message, client, data)
        return result._replace(upload={**result.upload, "lacking": lacking(data.id)})

    def serve(key, server, aggregate, cohort):
        kept = {**server, "params": without(aggregate["lacking"], server["params"])}
        return plain.serve(key, kept, aggregate, cohort)  # (4): the mean of what clients keep, and of their changes

    return plain._replace(local=local, broadcast=broadcast, serve=serve, up={"model": rows(), "lacking": known()}, down={**plain.down, "model": rows()})


@method(family="finetuning", paper=FFALORA, year=2024, lr=1e-3, epochs=10, batch_size=64, client_optimizer="adamw")
def ffalora(task: Task, work: Work, *, rank: Count = 16, scale: Positive = 1.0, where: tuple[str, ...] = (), whole: tuple[str, ...] = (),
            start: Start = "kaiming", weighting: Weighting = "examples") -> Method:
    """FedAvg of the second factors of low-rank adapters whose first ones are random and stay.

    Args:
      rank: r of the adapters.
      scale: s = alpha / r; what it does, a rate does too.
      where: words, one of which is in the path of an adapted matrix; all matrices but tables of embeddings where none is given.
      whole: words, one of which is in the path of a leaf that is trained as it is, such as a new head.
      start: A's rows, kaiming (uniform within 1 / sqrt(in)) or orthogonal.
      weighting: clients count by their examples, or all alike.
    """
    model = adapted(task, sites(task, where, whole), rank=rank, scale=scale, start=start, fixed=("a",))  # (5)
    return averaged(model, work, weighting)
