"""One client's training: the order of its batches and the masked loop over them.

The loop runs to the longest client of a chunk and is the identity beyond a client's own steps, so that ragged clients train side
by side (`longest`, `active`). A client's order comes from its own number of examples, never from a padded capacity.

In the examples, `task`, `work` and `data` are what a method and its `local` are given: here a logistic regression of four classes, two
epochs of batches of two with SGD, and a client with three examples; `params` is the model received.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.types import Aux, Batch, ClientData, Key, Task, Tree, View

Direction = Callable[[Key, Tree, Batch], tuple[jax.Array, Tree, Tree]]
"""(key, params, batch) -> (loss, direction, stats): what a step descends along; stats as in Aux."""


@jax.custom_batching.custom_vmap
def longest(steps: jax.Array) -> jax.Array:
    """The trip count of a loop: `steps` itself, or under any vmap the largest of all, unbatched."""
    return steps


@longest.def_vmap
def _longest_of_all(axis_size, in_batched, steps):
    return longest(jnp.max(steps)), False


@jax.custom_batching.custom_vmap
def _active(t: jax.Array, steps: jax.Array) -> jax.Array:
    """Whether step t is the client's own. Outside vmap the loop ends with the client, and the constant folds away."""
    return jnp.ones((), bool)


@_active.def_vmap
def _active_batched(axis_size, in_batched, t, steps):
    if not in_batched[1]:
        return _active(t, steps), False
    return jnp.less(t, steps), True


class Work(NamedTuple):
    """The options of local training that every method with local training has under these names.

    lr: client learning rate.  epochs: passes over the client's data, used when local_steps is 0.
    local_steps: a fixed number of steps for every client, whatever its size; 0 means epochs.
    batch_size: examples a step, or "full" for all of them.  optimizer: an optax transformation made for this lr.
    lr_decay: what lr is multiplied by after every round; a method never reads it, see `at`.
    """

    lr: Any
    epochs: int
    local_steps: int
    batch_size: int | str
    optimizer: optax.GradientTransformation
    plain: bool = True  # the optimizer is SGD without momentum or decay, which some methods need
    named: str = "sgd"  # the optimizer as it was asked for, for messages
    lr_decay: float = 1.0

    @property
    def decays(self) -> bool:
        """Whether lr may differ between rounds, as it may where its decay is traced."""
        return isinstance(self.lr_decay, jax.Array) or self.lr_decay != 1

    def at(self, clock: jax.Array) -> Work:
        """The work of round `clock`: its lr is lr lr_decay^clock, and what the optimizer adds is as much smaller."""
        factor = self.lr_decay**clock
        return self._replace(lr=self.lr * factor, optimizer=optax.chain(self.optimizer, optax.scale(factor)), lr_decay=1.0)

    def steps(self, size: jax.Array) -> jax.Array:
        """Local steps of clients with `size` examples (any shape); none without data."""
        per_epoch = 1 if self.batch_size == "full" else -(-size // self.batch_size)
        steps = jnp.full_like(size, self.local_steps) if self.local_steps else self.epochs * per_epoch + 0 * size
        return jnp.where(size > 0, steps, 0).astype(jnp.int32)


class Batches(NamedTuple):
    """The batches of one client in one round.

    steps: int32 scalar, how many;  at: (t) -> Batch, the t-th, t < steps;  key: for the randomness of the steps.
    """

    steps: jax.Array
    at: Callable[[jax.Array], Batch]
    key: Key


def batches(key: Key, data: ClientData, work: Work, view: View | None = None) -> Batches:
    """Reshuffled epochs of `data.train` (or another view), cut into batches; the last of an epoch is smaller when B does not divide n.

    Args:
      key: the order follows from it and from n alone.
      data: the client;  view: of its examples, `data.train` where None.
      work: epochs or local_steps, and B, its batch_size.

    >>> found = batches(jax.random.key(0), data, work)
    >>> int(found.steps), found.at(0)["x"].shape, found.at(0)["mask"].tolist(), found.at(1)["mask"].tolist()
    (4, (2, 4), [True, True], [True, False])
    """
    view = data.train if view is None else view
    size = view.size
    width = view.capacity if work.batch_size == "full" else min(work.batch_size, view.capacity)
    per_epoch = jnp.maximum(-(-size // width), 1)
    order = keys.purpose(key, "order")
    lane = jnp.arange(width, dtype=jnp.int32)

    def at(t):
        epoch, turn = t // per_epoch, t % per_epoch
        positions = turn * width + lane
        mask = positions < size
        if work.batch_size == "full":
            return view.take(positions, mask)
        return view.take(keys.shuffle(jax.random.fold_in(order, epoch), positions, size), mask)

    return Batches(jnp.minimum(work.steps(size), data.allowance), at, keys.purpose(key, "steps"))


def loop(batches: Batches, carry: Tree, step: Callable[[jax.Array, Key, Batch, Tree], Tree]) -> Tree:
    """Folds `step(t, key, batch, carry) -> carry` over the client's batches: t is an int32 scalar, carry any pytree of arrays.

    >>> def count(t, key, batch, carry):
    ...     return carry + batch["mask"].sum()
    >>> int(loop(batches(jax.random.key(0), data, work), jnp.int32(0), count))  # three examples, twice
    6
    """

    def body(t, carry):
        new = step(t, jax.random.fold_in(batches.key, t), batches.at(t), carry)
        return tree.select(_active(t, batches.steps), new, carry)

    return jax.lax.fori_loop(0, longest(batches.steps), body, carry)


class Descent(NamedTuple):
    """What `descend` returns: the last iterate and the mean loss over the steps taken (0 if none)."""

    params: Tree
    loss: jax.Array


def descend(batches: Batches, params: Tree, direction: Direction, optimizer: optax.GradientTransformation) -> Descent:
    """Local training with one loss: y <- y - optimizer(direction(y)) over the client's batches, from fresh optimizer state.

    Args:
      batches: of the client, see `batches`.
      params: y at the start.
      direction: (key, y, batch) -> (loss, direction, stats), such as `gradient(task)`.
      optimizer: an optax transformation, such as `work.optimizer`.

    >>> end = descend(batches(jax.random.key(0), data, work), params, gradient(task), work.optimizer)
    >>> start = task.loss(params, data.train.whole(), None)[0]
    >>> bool(task.loss(end.params, data.train.whole(), None)[0] < start)
    True
    """

    def step(t, key, batch, carry):
        y, state, total = carry
        loss, v, stats = direction(key, y, batch)
        update, state = optimizer.update(v, state, y)
        return with_stats(optax.apply_updates(y, update), stats), state, total + loss

    loss = jax.eval_shape(lambda: direction(batches.key, params, batches.at(jnp.int32(0)))[0])
    zero = 0 * jnp.sum(batches.steps, dtype=loss.dtype)  # varies over the mesh as the carry does
    y, _, total = loop(batches, (params, optimizer.init(params), zero), step)
    return Descent(y, total / jnp.maximum(batches.steps, 1))


def with_stats(params: Tree, stats: Tree) -> Tree:
    """params with its normalization statistics replaced by stats, where the model has any.

    >>> with_stats({"params": 1, "stats": 2}, 3), with_stats({"w": 1}, ())
    ({'params': 1, 'stats': 3}, {'w': 1})
    """
    return {**params, "stats": stats} if jax.tree.leaves(stats) else params


def gradient(task: Task) -> Direction:
    """The stochastic gradient of the task's loss on one batch: v = grad F(y; b).

    Returns:
      (key, y, batch) -> (loss, v, stats): a scalar, a tree like y, and the new normalization statistics, () where there are none.

    >>> loss, v, stats = gradient(task)(jax.random.key(0), params, data.train.whole())
    >>> loss.shape, jax.tree.structure(v) == jax.tree.structure(params), stats
    ((), True, ())
    """

    def direction(key, params, batch):
        (loss, aux), grad = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
        return loss, grad, aux.stats

    return direction


__all__ = ["Aux", "Batches", "Descent", "Direction", "Work", "batches", "descend", "gradient", "longest", "loop", "with_stats"]
