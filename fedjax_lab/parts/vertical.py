"""Vertical learning: the clients are parties with different features of the same examples, whose labels the server alone has.

Activations go up and their gradients come down as fields of uploads and messages, so the wires of both ways count what is cut. The first
examples of every party are the aligned ones, as many as there are labels (data/vertical.py). What the parties have of their own the server's
state holds for them, in rows [P, ...], and `known` wires take it to them and back: so the joint model can be evaluated.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.parts import examples, split
from fedjax_lab.parts.aggregators.together import Stack
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.types import Batch, Census, Cohort, Key, Task, Tree, View

WHY = "models stay where they are, and nothing is averaged"
REFUSES = {"aggregator": WHY, "server": WHY, "wire_up": WHY, "wire_down": WHY}


def demand(name: str, task: Task) -> None:
    """That the task's model is split, and has no statistics.

    Raises:
      ValueError: it is not, or has.
    """
    split.demand(name, task)
    if statistics.present(task):
        raise ValueError(f"'{name}' needs a model without normalization statistics; task '{task.name}' has some")


def demand_parties(name: str, task: Task, census: Census) -> int:
    """A, the number of aligned examples.

    Raises:
      ValueError: there are none, or a party has fewer.
    """
    size = np.asarray(census.size)
    if not census.public or ((size > 0) & (size < census.public)).any():
        raise ValueError(f"'{name}' needs parties with different features of the same examples; task '{task.name}' has none: "
                         "choose --partition=vertical:2, for example")
    return census.public


def aligned(view: View, count: int) -> View:
    """A party's aligned examples, the first `count`; none of a party without any."""
    return view._replace(stream=view.stream._replace(size=jnp.minimum(view.stream.size, count)), capacity=count)


def alone(view: View, count: int) -> View:
    """The examples of a party after the aligned ones."""
    stream = view.stream
    return view._replace(stream=stream._replace(offset=stream.offset + count, size=jnp.maximum(stream.size - count, 0)),
                         capacity=max(1, view.capacity - count))


def encoders(key: Key, task: Task, census: Census) -> Tree:
    """The parties' first parameters [P, ...], each drawn for itself; a model's head has no part in the joint model."""
    return jax.vmap(lambda k: task.init(keys.for_client(key, k)))(jnp.arange(census.clients))


def top(key: Key, task: Task, params: Tree, census: Census, widths: Sequence[int]) -> list[dict[str, jax.Array]]:
    """The server's dense layers, of Gaussian weights of variance 1 / fan-in, from the activations of all parties to the outputs.

    Args:
      params: of one party;  widths: of the layers between, with ReLUs after them.
    """
    (outputs,) = jax.eval_shape(task.apply, params, census.batch()).shape[1:]
    sizes = [census.clients * int(np.prod(split.feature_shape(task, params, census))), *widths, outputs]
    return [{"bias": jnp.zeros(b), "kernel": jax.random.normal(jax.random.fold_in(key, i), (a, b)) / np.sqrt(a)}
            for i, (a, b) in enumerate(itertools.pairwise(sizes))]


def outputs(layers: Sequence[dict[str, jax.Array]], h: jax.Array) -> jax.Array:
    """What the server's layers make of the activations [P, B, d] beside each other, [B, C]."""
    z = jnp.moveaxis(h, 0, 1).reshape(h.shape[1], -1)
    for i, layer in enumerate(layers):
        z = (jax.nn.relu(z) if i else z) @ layer["kernel"] + layer["bias"]
    return z


def loss(task: Task, layers: Sequence[dict[str, jax.Array]], h: jax.Array, batch: Batch) -> jax.Array:
    """The mean loss of activations [P, B, d] over the examples that are there."""
    return examples.mean(task.metrics(outputs(layers, h), batch)["loss"], batch["mask"])


def completed(own: jax.Array, h: jax.Array) -> jax.Array:
    """The activations [P, P, U, d] of all parties, the second axis, for examples that one party alone has, the first: its own [P, U, d], and of
    another party what scaled dot-product attention makes of its aligned ones h [P, A, d], by the party's own and its aligned ones."""
    near = jax.nn.softmax(jnp.einsum("kud,kad->kua", own, h) / np.sqrt(h.shape[2]))
    mine = jnp.eye(len(h), dtype=bool)[:, :, None, None]
    return jnp.where(mine, own[:, None], jnp.einsum("kua,jad->kjud", near, h))


def joint(task: Task) -> Task:
    """The task of the joint model {"parties": [P, ...], "top": layers} on examples whose "x" is that of all parties, [B, P, ...]."""

    def apply(params, batch, key=None):
        h = jax.lax.map(lambda pair: task.features(pair[0], {**batch, "x": pair[1]}, key), (params["parties"], jnp.moveaxis(batch["x"], 1, 0)))
        return outputs(params["top"], h)

    return task._replace(apply=apply, features=None, head=None, taps=None)


def placed(rows: Tree, stack: Stack, cohort: Cohort) -> Tree:
    """The rows [P, ...] with the uploads of those who were heard in their places."""
    at = jnp.where(stack.weights > 0, cohort.ids, cohort.clients)
    return jax.tree.map(lambda x, new: x.at[at].set(new.astype(x.dtype), mode="drop"), rows, stack.uploads)
