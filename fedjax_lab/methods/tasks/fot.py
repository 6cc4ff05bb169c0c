"""FOT: what a new task changes is orthogonal to what the layers were fed by the old ones.

Bakman, Yaldiz, Ezzeldin, Avestimehr, "Federated Orthogonal Training: Mitigating Global Catastrophic Forgetting in Continual Federated
Learning", ICLR 2024.

    (1)  y_i <- y_i - lr grad F_i(y_i; b)               from x^t, on the present task's examples
    (2)  G_l = mean_i (y_i - x^t)_l,   x_l <- x_l + G_l - U_l U_l^T G_l         for every kernel [d_l, outputs] but the head's
    (3)  after the last round of a task, from each client:  R = X_l - U_l U_l^T X_l,   Y_l = R Omega,   r = ||R|| / ||X_l||
         X_l [d_l, n_l] the inputs of the layer (patches, of a convolution), Omega [n_l, m_l] private and random
    (4)  V: the left singular vectors of sum Y_l, the fewest that hold more than eps' = (r - (1 - eps)) / r of its energy, at least
         one, r being the mean by n_l;  U_l <- QR([U_l, V]),  eps <- eps + eps_step

Keeps: U_l^T U_l = I and U_l^T (change of x_l) = 0: what a layer makes of inputs in the span of U_l stays, as far as it is its own doing.
Reduces to: FedAvg with equal weights during the first task; a frozen layer where U_l has d_l columns.
Departs: only the clients of a task's last round tell of it. The model goes down once more with the bases. Biases and the like are averaged
as the paper has it, or frozen after the first task. Of heads of several tasks there is one, whose task is for the model to tell from "task".
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches, loop
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.wires.plain import columns_unless_zero
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Federated Orthogonal Training: Mitigating Global Catastrophic Forgetting in Continual Federated Learning"


class Server(NamedTuple):
    """params;  bases: {path of a kernel: U [d, d]}, zeros beyond its first columns;  eps: float32 scalar."""

    params: Tree
    bases: Mapping[str, jax.Array]
    eps: jax.Array


def extended(U: jax.Array, Y: jax.Array, r: jax.Array, eps: jax.Array) -> jax.Array:
    """U [d, d] with more columns, of the sketch Y [d, m]."""
    d, column = len(U), jnp.arange(len(U))
    rank = jnp.sum(jnp.any(U != 0, 0))
    V, s, _ = jnp.linalg.svd(Y, full_matrices=False)
    held = jnp.cumsum(s**2) / jnp.maximum(jnp.sum(s**2), jnp.finfo(s.dtype).tiny)
    need = (r - (1 - eps)) / jnp.maximum(r, jnp.finfo(s.dtype).tiny)
    k = jnp.clip(1 + jnp.sum(held <= need), 1, jnp.minimum(d - rank, len(s))) * (s[0] > 0)
    both = jnp.where(column < rank, U, V[:, jnp.clip(column - rank, 0, len(s) - 1)])
    return jnp.where(column < rank + k, jnp.linalg.qr(jnp.where(column < rank + k, both, 0))[0], 0)  # (4)


@method(family="tasks", paper=PAPER, year=2024, lr=0.01)
def fot(task: Task, work: Work, *, task_rounds: Count = 10, eps: Share = 0.96, eps_step: NonNegative = 0.0, columns: Count = 1,
        noise: Literal["uniform", "gaussian"] = "uniform", others: Literal["averaged", "frozen"] = "averaged", head: str = "head") -> Method:
    """FedAvg over a sequence of tasks, projected away from what the layers were fed by earlier ones.

    Args:
      task_rounds: rounds of a task.
      eps: share of the inputs' norm that the bases shall hold.
      eps_step: what eps grows by after each task.
      columns: of a sketch, as a multiple of the layer's inputs.
      noise: law of the sketches' random matrices, U(-1, 1) or N(0, 1).
      others: what becomes of leaves that are no kernels after the first task.
      head: a word in the path of the leaves that are not projected; "" projects all kernels.
    """
    once_through = work._replace(epochs=1, local_steps=0)

    def ended(clock):
        return (clock + 1) % task_rounds == 0

    def serve(key, server, aggregate, cohort):
        def projected(path, change):
            if path in server.bases:
                U, G = server.bases[path], change.reshape(-1, change.shape[-1])
                return (G - U @ (U.T @ G)).reshape(change.shape)  # (2)
            moves = (cohort.clock < task_rounds) | (others == "averaged") | bool(head and head in path)
            return jnp.where(moves, change, 0)

        changes = [projected(*item) for item in paths(aggregate["model"]).items()]
        return server._replace(params=tree.add(server.params, jax.tree.unflatten(jax.tree.structure(server.params), changes)))

    def sketch(key, message, client, data):  # (3)
        bases, plan = message["bases"], batches(key, data, once_through)

        def step(t, key, batch, carry):
            found = {}
            taps = task.taps(message["model"], batch)
            for path, U in bases.items():
                X = jnp.where(batch["mask"][:, None, None], taps[path], 0).reshape(-1, len(U))
                R = X - X @ U @ U.T
                shape = len(X), columns * len(U)
                at = keys.purpose(key, path)
                Omega = jax.random.uniform(at, shape, R.dtype, -1, 1) if noise == "uniform" else jax.random.normal(at, shape, R.dtype)
                found[path] = R.T @ Omega, jnp.sum(R**2), jnp.sum(X**2)
            return tree.add(carry, found)

        zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
        blank = {path: (jnp.zeros((len(U), columns * len(U))) + zero, zero, zero) for path, U in bases.items()}
        found = loop(plan, blank, step)
        ratio = {path: jnp.sqrt(rest / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)) for path, (_, rest, whole) in found.items()}
        size = data.size.astype(jnp.float32)
        return Result({"sketch": {path: Y for path, (Y, *_) in found.items()}, "ratio": ratio}, {"sketch": jnp.minimum(size, 1), "ratio": size}, client)

    def grow(key, server, aggregate, cohort):
        def grown():
            bases = {path: extended(U, aggregate["sketch"][path], aggregate["ratio"][path], server.eps) for path, U in server.bases.items()}
            return server._replace(bases=bases, eps=server.eps + eps_step)

        return jax.lax.cond(ended(cohort.clock), grown, lambda: server)

    def init_server(key, params, census):
        if task.taps is None:
            raise ValueError(f"'fot' needs a model whose layers' inputs are known; task '{task.name}' has no taps: choose one of fedjax_lab.models")
        if census.task_rounds not in (0, task_rounds):
            raise ValueError(f"task_rounds={task_rounds}: 'fot' must know when a task ends; those of the clients take {census.task_rounds} rounds")
        fed = jax.eval_shape(task.taps, params, census.batch())
        chosen = {path: x.shape[-1] for path, x in fed.items() if not (head and head in path)}
        if not chosen:
            raise ValueError(f"'fot' has no kernel to project: head='{head}' is a word in the path of all of them: {', '.join(fed)}")
        return Server(params, {path: jnp.zeros((d, d)) for path, d in chosen.items()}, jnp.float32(eps))

    base = Method(local_sgd(task, work, "uniform"), init_server, serve=serve, broadcast=lambda server, client, clock: {"model": server.params},  # (1)
                  deploy=lambda server: server.params, steps=work.steps)
    boundary = base.phase(local=sketch, serve=grow, aggregate={"sketch": rules.total()}, down={"bases": columns_unless_zero()},
                          broadcast=lambda server, client, clock: {"model": server.params, "bases": server.bases},
                          when=lambda key, clock: ended(clock))
    return base._replace(phases=(base.phase(), boundary))
