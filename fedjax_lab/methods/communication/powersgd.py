"""PowerSGD: changes as products of two thin matrices, found by one step of a power iteration that all clients share.

Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS 2019.

    (1)  M_i = y_i - x^t + e_i, a matrix [out, rest] for every tensor of two axes or more;  y_i by local SGD from x^t
    (2)  clients send P_i = M_i Q;      P = the orthonormalized mean of the P_i
    (3)  clients send Q_i = M_i^T P;    Q = the mean of the Q_i, from which the next round starts
    (4)  x^{t+1} = x^t + P Q^T
    (5)  e_i <- M_i - P Q_i^T, or M_i - P Q^T

Keeps: P and Q are linear in the M_i, so the mean of the factors is the factor of the mean; what is not sent is remembered.
Reduces to: FedAvg where the rank reaches that of the mean of the M_i.
Departs: the paper's e_i is the second of (5), for which Q goes down to the round's clients once more; the first, of the released package, needs
nothing. Tensors of which the factors would be less than `ratio` times smaller, and vectors, go whole. Means are by weights.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, heard, local_sgd
from fedjax_lab.parts.leaves import paths
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative
from fedjax_lab.types import Method, Phase, Result, Task, Tree

PAPER = "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization"
Thin = Mapping[str, jax.Array]


class Power(NamedTuple):
    """params: the model.  Q: {path: [rest, rank]}.  P: {path: [out, rank]} of this round.  whole: {path: mean change} of the other tensors."""

    params: Tree
    Q: Thin
    P: Thin
    whole: Thin


def matrix(change: jax.Array) -> jax.Array:
    """[.., out] as [out, rest]."""
    return change.reshape(-1, change.shape[-1]).T


@method(family="communication", paper=PAPER, year=2019, stateful=True,
        refuses={"wire_up": "it is a wire itself, of two exchanges", "aggregator": "its factors are means of means"})
def powersgd(task: Task, work: Work, *, rank: Count = 2, ratio: NonNegative = 2.0, memory: Literal["own", "mean", "none"] = "own",
             weighting: Weighting = "examples") -> Method:
    """FedAvg whose changes travel as two factors of low rank, in two exchanges.

    Args:
      rank: columns of the factors, at most the shorter side of a tensor; 1 to 4.
      ratio: a tensor goes whole where its factors are not so many times smaller.
      memory: a client remembers what its own factors lack, or what the mean factors lack of its change, or nothing.
      weighting: clients count by their examples, or all alike.
    """
    train = local_sgd(task, work, weighting)
    like = jax.eval_shape(task.init, jax.random.key(0))
    moves = paths(tree.trainable(like))
    thin = sorted(path for path, leaf in paths(like).items() if moves[path] and _saves(leaf.shape, rank, ratio))

    def sketch(key, message, errors, data):
        result = train(key, message, errors, data)
        changes = paths(result.upload["model"])
        M = {k: matrix(changes[k]) + errors.get(k, 0) for k in thin}  # (1)
        upload = {"P": {k: M[k] @ message["Q"][k] for k in thin}, "whole": {k: v for k, v in changes.items() if k not in thin}}  # (2)
        return result._replace(upload=upload, keep=(M, result.weight))

    def orthonormalize(key, server, aggregate, cohort):
        return server._replace(P={k: jnp.linalg.qr(P)[0] for k, P in aggregate["P"].items()}, whole=aggregate["whole"])

    def refine(key, message, errors, data):
        (M, weight), P = data.keep, message["P"]
        Q = {k: M[k].T @ P[k] for k in thin}  # (3)
        errors = {k: M[k] - P[k] @ Q[k].T for k in errors}  # (5)
        return Result({"Q": Q}, weight, errors, keep=(M, P))

    def serve(key, server, aggregate, cohort):
        Q = tree.select(heard(cohort) > 0, aggregate["Q"], server.Q)
        change = {k: (server.P[k] @ aggregate["Q"][k].T).T for k in thin} | server.whole
        moved = {k: x + change[k].reshape(x.shape) for k, x in paths(server.params).items()}  # (4)
        return server._replace(params=jax.tree.unflatten(jax.tree.structure(like), list(moved.values())), Q=Q)

    def correct(key, message, errors, data):
        M, P = data.keep
        return Result({}, 0.0, {k: M[k] - P[k] @ message["Q"][k].T for k in errors})  # (5)

    def init_server(key, params, census):
        leaves = paths(params)
        sides = {k: matrix(leaves[k]).shape for k in thin}
        Q = {k: jax.random.normal(keys.purpose(key, k), (n, min(rank, m, n))) for k, (m, n) in sides.items()}
        P = {k: jnp.zeros((m, min(rank, m, n))) for k, (m, n) in sides.items()}
        return Power(params, Q, P, {k: jnp.zeros_like(v) for k, v in leaves.items() if k not in thin})

    def init_client(key, params, facts):
        return {} if memory == "none" else {k: jnp.zeros_like(matrix(v)) for k, v in paths(params).items() if k in thin}

    def exchange(local, serve, send) -> Phase:
        return Phase(local, lambda server, client, clock: send(server), {}, {}, {}, serve)

    phases = [exchange(sketch, orthonormalize, lambda s: {"model": s.params, "Q": s.Q}), exchange(refine, serve, lambda s: {"P": s.P})]
    if memory == "mean":
        phases.append(exchange(correct, lambda key, server, aggregate, cohort: server, lambda s: {"Q": s.Q}))
    return Method(init_server=init_server, init_client=init_client, phases=tuple(phases), steps=work.steps, deploy=lambda server: server.params)


def _saves(shape: tuple[int, ...], rank: int, ratio: float) -> bool:
    """Whether the factors of a tensor of this shape are so many times smaller."""
    return len(shape) > 1 and math.prod(shape) >= ratio * rank * (shape[-1] + math.prod(shape[:-1]))
