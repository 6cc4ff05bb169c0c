"""Clients with labels for a part of their examples: the labeled and the unlabeled ones, each a view of its own.

Which they are says the field "labeled" (bool) of the training examples; see data/semi.py.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.local import Batches, Work, batches
from fedjax_lab.parts import examples, split
from fedjax_lab.types import Aux, Batch, Census, ClientData, Key, Stream, Task, Tree, View

FIELD = "labeled"


class Streams(NamedTuple):
    """labeled, unlabeled: the client's examples of either kind, either may have none."""

    labeled: View
    unlabeled: View


def demanded(name: str, task: Task, census: Census) -> None:
    """That examples have a class each, which is known of some.

    Raises:
      ValueError: it is not so.
    """
    split.demand_classes(name, task, census)
    if FIELD not in census.example:
        raise ValueError(f"'{name}' needs examples of which some have no label; hide labels by --partition=dirichlet:0.3+semi:0.1, for example")


def streams(data: ClientData) -> Streams:
    """The two streams of one client; their capacity is that of its training examples."""
    view = data.train
    lane = jnp.arange(view.capacity, dtype=jnp.int32)
    there = lane < view.size
    rows = view.stream.rows(view.client, jnp.where(there, lane, 0))
    kind = jnp.where(there, jnp.where(view.stream.examples[FIELD][rows], 0, 1), 2)
    index, number = rows[jnp.argsort(kind, stable=True)], jnp.sum(kind == 0, dtype=jnp.int32)

    def part(offset: jax.Array, size: jax.Array) -> View:
        stream = Stream(view.stream.examples, offset[None], size[None], index)
        return view._replace(stream=stream, client=jnp.int32(0))

    return Streams(part(0 * number, number), part(number, view.size - number))


def first(data: ClientData, all_of_them: jax.Array) -> View:
    """The labeled examples of one client, followed by the others where the bool scalar holds."""
    view = streams(data).labeled
    size = jnp.where(all_of_them, data.size, view.size)
    return view._replace(stream=view.stream._replace(size=size[None]))


def over(key: Key, data: ClientData, work: Work, view: View) -> Batches:
    """Reshuffled epochs of one stream, over and over for as many steps as work says of all the client's examples; without an example in it
    the batches are empty."""
    return batches(key, data, work, view)._replace(steps=jnp.minimum(work.steps(data.size), data.allowance))


def taught(task: Task, y: Tree, batch: Batch, labels: jax.Array, chosen: jax.Array, key: Key) -> tuple[jax.Array, Aux]:
    """The mean loss over the chosen [B] of a batch's examples, with these labels [B] in the place of their own."""
    return task.loss(y, {**batch, "y": jax.lax.stop_gradient(labels).astype(batch["y"].dtype), "mask": batch["mask"] & chosen}, key)


def believed(outputs: jax.Array, threshold: jax.Array | float, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The most likely labels int32 [B] of logits [B, C], whether their probability is at least the threshold [B], and the share of these,
    among the examples that are there."""
    p = jax.nn.softmax(outputs)
    sure = (jnp.max(p, -1) >= threshold) & mask
    return jnp.argmax(p, -1).astype(jnp.int32), sure, examples.mean(sure.astype(jnp.float32), mask)


def right(batch: Batch, labels: jax.Array) -> jax.Array:
    """The share of a batch's examples whose label this [B] is indeed: for the record, no method may train on it."""
    return examples.mean((labels == batch["y"]).astype(jnp.float32), batch["mask"])
