"""AnalyticFL: a linear classifier on frozen features in closed form, in one round, whatever the partition.

He, Tong, Fang, Sun, Zeng, Li, Chen, Zhuang, "Analytic Federated Learning", CVPR 2025.

    (1)  C_k = X_k^T X_k + gamma I,   W_k = C_k^-1 X_k^T Y_k        X_k features, Y_k one-hot labels; sent once
    (2)  C = sum_k C_k,   W = C^-1 sum_k C_k W_k                    over the K clients heard so far: the absolute aggregation law
    (3)  W <- W + K gamma (C - K gamma I)^-1 W                      where the matrix can be inverted

Keeps: nothing depends on who holds which example, on the order of the clients, or on the rounds in which they were heard.
Reduces to: ridge regression with K gamma on all examples without (3), least squares with it.
Departs: (2) is the closed form that the paper's pairwise law has as its result; so dropouts come later at no cost. A client without
examples stays away, where the paper's sends gamma I and is counted in K: (3) takes out both. The head's bias is zero: a constant, where it
is wanted, is a feature. A straggler tells of the batches it got to. Sums and solutions are in float64 where it is switched on; in
float32 features that are nearly dependent count as dependent, and (3) is left out.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, loop
from fedjax_lab.parts import heads, split
from fedjax_lab.parts.wires.plain import known, once
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Result, Streaming, Task, Tree

CLOSED = "its clients send matrices that are solved for"


class Solution(NamedTuple):
    """C [F, F], W [F, classes] and how many clients they are of; with W for C W in sums."""

    C: jax.Array
    W: jax.Array
    count: jax.Array


class Server(NamedTuple):
    """params;  sums: a Solution of all clients heard so far."""

    params: Tree
    sums: Solution


def absolute() -> Streaming:
    """The sums of C_k, of C_k W_k and of the clients."""

    def add(acc, value, weight):
        terms = Solution(value.C, value.C @ value.W, value.count)  # (2)
        return jax.tree.map(lambda a, x: a + jnp.where(weight == 0, 0, weight * x).astype(a.dtype), acc, terms)

    return Streaming(lambda value, weight: tree.zeros_like(value), add, tree.add, lambda acc: acc)


def solved(sums: Solution, gamma: float, remove: bool) -> jax.Array:
    """W [F, classes] of at least one client."""
    one = jnp.eye(len(sums.C), dtype=sums.C.dtype)
    W = cho_solve((jnp.linalg.cholesky(sums.C), True), sums.W)  # (2)
    bare = sums.C - sums.count * gamma * one
    lower = jnp.linalg.cholesky(bare)
    least = len(one) * jnp.finfo(one.dtype).eps * jnp.max(jnp.diag(sums.C))
    full = jnp.min(jnp.diag(lower)) ** 2 > least  # not so for NaN either, which is what is not positive gives
    more = cho_solve((jnp.where(full, lower, one), True), W)
    return W + jnp.where(full & remove, sums.count * gamma, 0) * more  # (3)


@method(family="aggregation", paper="Analytic Federated Learning", year=2025, batch_size="full",
        refuses={"aggregator": CLOSED, "server": CLOSED, "wire_up": CLOSED, "wire_down": CLOSED})
def analyticfl(task: Task, work: Work, *, gamma: Positive = 1.0, remove: bool = True, head: str = "head") -> Method:
    """Least squares on the features of a frozen model, exact in one round; lr and epochs do not matter.

    Args:
      gamma: of the ridge that makes every client's matrix invertible.
      remove: take all ridges out again.
      head: a word in the path of the leaves that are the classifier, one of them the matrix [features, classes].
    """
    top = heads.linear("analyticfl", task, head)
    once_through = work._replace(epochs=1, local_steps=0)

    def local(key, message, client, data):
        x, plan = top.halves.join(message["body"], message["head"]), batches(key, data, once_through)
        wide = jnp.zeros((), jax.dtypes.canonicalize_dtype(float)) * plan.steps

        def step(t, key, batch, carry):
            C, V, loss = carry
            X = jnp.where(batch["mask"][:, None], task.features(x, batch), 0).astype(wide.dtype)
            Y = jax.nn.one_hot(batch["y"], top.classes, dtype=wide.dtype)
            return C + X.T @ X, V + X.T @ Y, loss + task.loss(x, batch, key)[0]

        zero = [jnp.zeros((top.features, n)) + wide for n in (top.features, top.classes)]
        C, V, loss = loop(plan, (*zero, wide.astype(jnp.float32)), step)
        C = C + gamma * jnp.eye(top.features)
        own = Solution(C, cho_solve((jnp.linalg.cholesky(C), True), V), 1 + wide)  # (1)
        return Result({"solution": own}, jnp.float32(data.size > 0), metrics={"loss": loss / jnp.maximum(plan.steps, 1)})

    def serve(key, server, aggregate, cohort):
        sums = tree.add(server.sums, aggregate["solution"])
        first = sums._replace(C=sums.C + jnp.where(sums.count == 0, jnp.eye(top.features), 0))
        params = tree.select(sums.count == 0, server.params, top.filled(server.params, solved(first, gamma, remove)))
        return Server(params, sums)

    def init_server(key, params, census):
        split.demand_classes("analyticfl", task, census)
        blank = [jnp.zeros(shape, float) for shape in ((top.features, top.features), (top.features, top.classes), ())]
        return Server(params, Solution(*blank))

    def broadcast(server, client, clock):
        return {"head": top.halves.part(server.params, True), "body": top.halves.part(server.params, False)}

    return Method(local, init_server, broadcast=broadcast, serve=serve, aggregate={"solution": absolute()}, up={"solution": once()},
                  down={"body": known()}, deploy=lambda server: server.params, steps=once_through.steps)
