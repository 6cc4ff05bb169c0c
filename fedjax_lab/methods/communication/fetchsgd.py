"""FetchSGD: clients send count sketches, and momentum and error memory live in sketches at the server.

Rothchild, Panda, Ullah, Ivkin, Stoica, Braverman, Gonzalez, Arora, "FetchSGD: Communication-Efficient Federated Learning with Sketching",
ICML 2020.

    (1)  S(g)[r, c] = sum of s_r(j) g_j over the j with h_r(j) = c          linear; h_r and s_r are fixed hashes of the entries j
    (2)  clients send S(g_i), g_i = x^t - y_i after K_i steps from x^t
    (3)  V <- momentum V + mean S(g_i);   E <- E + server_lr V
    (4)  u = the k entries of largest |U(E)_j|, U(E)_j = median_r s_r(j) E[r, h_r(j)];   x^{t+1} = x^t - u
    (5)  the cells that entries of u fall into become zero in E and V; or E <- E - S(u), and V as before

Keeps: clients remember nothing; S(a) + S(b) = S(a + b), so the sum of the messages is the message of the sum.
Reduces to: FedAvgM where no two entries share a cell, k is the number of entries and (5) leaves V alone.
Departs: the paper has one step a client (local_steps=1), as here by default; its code zeroes cells, since the subtraction of its text diverged.
In a round without clients nothing happens. The table is told as a share of the model's size.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_lab import keys, tree
from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, heard, local_sgd
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.parts.wires.topk import Kept
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Share
from fedjax_lab.types import Method, Task, Tree

PAPER = "FetchSGD: Communication-Efficient Federated Learning with Sketching"


class Sketches(NamedTuple):
    """params: x [..].  V, E: float32 [rows, columns]."""

    params: Tree
    V: jax.Array
    E: jax.Array


class Hashes(NamedTuple):
    """column: int32 [rows, d], the h_r(j) < columns;  sign: float32 [rows, d], the s_r(j)."""

    column: jax.Array
    sign: jax.Array
    columns: int

    def sketch(self, g: jax.Array) -> jax.Array:
        """S(g) [rows, columns] of g [d]."""
        return jax.vmap(lambda c, s: jnp.zeros(self.columns, g.dtype).at[c].add(s * g))(self.column, self.sign)  # (1)

    def estimate(self, table: jax.Array) -> jax.Array:
        """U(table) [d]."""
        return jnp.median(self.sign * jnp.take_along_axis(table, self.column, 1), 0)

    def cleared(self, table: jax.Array, entries: jax.Array) -> jax.Array:
        """The table with zeros where these entries [k] fall."""
        return jax.vmap(lambda row, c: row.at[c[entries]].set(0))(table, self.column)


def hashes(entries: int, rows: int, size: float, seed: int = 0) -> Hashes:
    """Of a table that has `size` times as many cells as there are entries."""
    key, columns = jax.random.key(seed), max(1, round(size * entries / rows))
    column = jax.random.randint(keys.purpose(key, "column"), (rows, entries), 0, columns, jnp.int32)
    return Hashes(column, jax.random.rademacher(keys.purpose(key, "sign"), (rows, entries), jnp.float32), columns)


@method(family="communication", paper=PAPER, year=2020, local_steps=1,
        refuses={"wire_up": "its sketch is the wire", "aggregator": "the mean of sketches is the sketch of the mean",
                 "server": "its momentum and its step are in the sketch"})
def fetchsgd(task: Task, work: Work, *, share: Kept = 0.01, rows: Count = 5, size: Positive = 0.38, momentum: Share = 0.9, server_lr: Positive = 1.0,
             clear: Literal["zero", "subtract"] = "zero", seed: int = 0, weighting: Weighting = "examples") -> Method:
    """FedAvg through count sketches, with momentum and error memory at the server and the largest entries sent on.

    Args:
      share: of the model's entries that move in a round, at least one.
      rows: of the table; an entry is estimated by the median of so many cells.
      size: cells of the table as a share of the model's entries.
      momentum: of the sketched changes.
      server_lr: step of the server.
      clear: what an entry's cells become once it has moved: zero, also in the momentum, or less by what was taken.
      seed: of the hashes.
      weighting: clients count by their examples, or all alike.
    """
    if statistics.present(task):
        raise ValueError(f"'fetchsgd' needs a model without normalization statistics; task '{task.name}' has some: choose norm=group or none")
    train = local_sgd(task, work, weighting)
    entries = tree.size(jax.eval_shape(task.init, jax.random.key(0)))
    k = max(1, round(share * entries))

    def at() -> Hashes:
        return hashes(entries, rows, size, seed)

    def local(key, message, client, data):
        result = train(key, message, client, data)
        return result._replace(upload={"sketch": at().sketch(-ravel_pytree(result.upload["model"])[0])})  # (2)

    def serve(key, server, aggregate, cohort):
        h = at()
        V = momentum * server.V + aggregate["sketch"]
        E = server.E + server_lr * V  # (3)
        estimate = h.estimate(E)
        _, chosen = jax.lax.top_k(jnp.abs(estimate), k)
        u = jnp.zeros_like(estimate).at[chosen].set(estimate[chosen])
        flat, back = ravel_pytree(server.params)
        left = (h.cleared(V, chosen), h.cleared(E, chosen)) if clear == "zero" else (V, E - h.sketch(u))  # (5)
        return tree.select(heard(cohort) > 0, Sketches(back(flat - u), *left), server)  # (4)

    def init_server(key, params, census):
        table = jnp.zeros((rows, max(1, round(size * entries / rows))))
        return Sketches(params, table, table)

    return Method(local, init_server=init_server, broadcast=lambda server, client, clock: {"model": server.params}, serve=serve, steps=work.steps,
                  deploy=lambda server: server.params)
