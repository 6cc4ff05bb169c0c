"""What the upload of one client shows of its examples: gradient inversion, by who knows the model, the learning rate and the number of steps.

An upload of T steps of gradient descent is taken for (G, a sum of gradients) = -change / lr, and examples are looked for that give it:

    (1)  G(x, p) = sum_t grad F(y_t; x, p),  y_{t+1} = y_t - lr grad F(y_t; x, p),  y_0 the model sent, F the mean cross entropy
    (2)  dlg      min over x, l of ||G(x, softmax l) - G*||^2
    (3)  idlg     the label is the class c whose column of the last layer has a negative gradient sum_f dF/dW_fc, then (2) over x alone
    (4)  geiping  min over x in a box of 1 - cos(G(x, p), G*) + tv TV(x), by the signs of Adam's steps

(3) is exact for one example and features that are not negative, since dF/dW_fc = (p_c - 1[c = y]) h_f. Zhu, Liu, Han, "Deep Leakage from
Gradients", NeurIPS 2019; Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020; Geiping, Bauermeister, Droege, Moeller,
"Inverting Gradients - How easy is it to break privacy in federated learning?", NeurIPS 2020. Several starts run side by side; the one
that comes closest is kept. Departs: no attack knows the truth, but geiping is given the labels of more than one example, as in the paper.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Key, Task, Tree


class Target(NamedTuple):
    """What is attacked. params: the model sent;  lr, steps: of the client's training;  shape: of x [B, ...];  classes: C;  low, high: the
    least and the largest value of any x."""

    task: Task
    params: Tree
    lr: Any
    steps: int
    shape: tuple[int, ...]
    classes: int
    low: float = 0.0
    high: float = 1.0


class Leak(NamedTuple):
    """What was found: x [B, ...], labels int32 [B], and how far its upload is from the one observed."""

    x: jax.Array
    labels: jax.Array
    distance: jax.Array


class Inversion(NamedTuple):
    """find: (target, key, change, labels) -> Leak, from one client's upload; labels [B] are the true ones, where `told(B)`."""

    find: Callable[[Target, Key, Tree, jax.Array], Leak]
    told: Callable[[int], bool]


@part(kind="audit", family="trust", paper="Deep Leakage from Gradients", year=2019)
def dlg(*, iterations: Count = 200, restarts: Count = 4) -> Inversion:
    """Examples and labels whose gradient is the one that a client sent, by L-BFGS.

    Args:
      iterations: of L-BFGS, a line search each; a picture of 28 x 28 behind three sigmoid convolutions took 600 to come out at 28 dB.
      restarts: starts, of which the closest is kept.
    """

    def find(target, key, change, labels):
        wanted = observed(target, change)

        def distance(guess):
            return squared(sent(target, guess[0], jax.nn.softmax(guess[1])), wanted)

        def start(key):
            one, two = jax.random.split(key)
            return jax.random.normal(one, target.shape), jax.random.normal(two, (target.shape[0], target.classes))

        (x, logits), least = closest(lambda key: lbfgs(distance, start(key), iterations), distance, key, restarts)
        return Leak(x, jnp.argmax(logits, -1).astype(jnp.int32), least)  # (2)

    return Inversion(find, lambda examples: False)


@part(kind="audit", family="trust", paper="iDLG: Improved Deep Leakage from Gradients", year=2020)
def idlg(*, iterations: Count = 200, restarts: Count = 4) -> Inversion:
    """The one example whose gradient is the one that a client sent, its label read off first.

    Args:
      iterations: of L-BFGS, a line search each; a picture of 28 x 28 behind three sigmoid convolutions took 600 to come out at 28 dB.
      restarts: starts, of which the closest is kept.
    """

    def find(target, key, change, labels):
        if target.shape[0] != 1:
            raise ValueError(f"'idlg' reads off the label of one example; there are {target.shape[0]}; choose dlg or geiping")
        wanted, found = observed(target, change), label(target, change)

        def distance(x):
            return squared(sent(target, x, jax.nn.one_hot(found, target.classes)), wanted)

        x, least = closest(lambda key: lbfgs(distance, jax.random.normal(key, target.shape), iterations), distance, key, restarts)
        return Leak(x, found, least)

    return Inversion(find, lambda examples: False)


@part(kind="audit", family="trust", paper="Inverting Gradients - How easy is it to break privacy in federated learning?", year=2020)
def geiping(*, iterations: Count = 1000, restarts: Count = 4, lr: Positive = 0.1, tv: NonNegative = 1e-4) -> Inversion:
    """Examples whose gradient has the direction of the one that a client sent, smooth and in range.

    Args:
      iterations: of Adam.
      restarts: starts, of which the closest is kept.
      lr: of Adam, as a share of the range; a tenth of it after 3/8, 5/8 and 7/8 of the iterations each.
      tv: weight of the total variation of pictures.
    """

    def find(target, key, change, labels):
        wanted = observed(target, change)
        found = label(target, change) if target.shape[0] == 1 else labels
        wide = target.high - target.low
        rate = optax.piecewise_constant_schedule(lr * wide, {iterations * k // 8: 0.1 for k in (3, 5, 7)})

        def distance(x):
            return 1 - cosine(sent(target, x, jax.nn.one_hot(found, target.classes)), wanted) + tv * variation(x / wide)

        def descend(key):
            optimizer = optax.adam(rate)

            def step(carry, _):
                x, state = carry
                update, state = optimizer.update(jnp.sign(jax.grad(distance)(x)), state)
                return (jnp.clip(x + update, target.low, target.high), state), None

            x = target.low + wide * jax.random.uniform(key, target.shape)
            return jax.lax.scan(step, (x, optimizer.init(x)), None, iterations)[0][0]  # (4)

        x, least = closest(descend, distance, key, restarts)
        return Leak(x, found, least)

    return Inversion(find, lambda examples: examples > 1)


def observed(target: Target, change: Tree) -> Tree:
    """G* of an upload."""
    return jax.tree.map(lambda u: -jnp.asarray(u, jnp.float32) / target.lr, change)


def sent(target: Target, x: jax.Array, share: jax.Array) -> Tree:
    """G of examples x [B, ...] with a distribution over the classes, share [B, C], each (1)."""

    def loss(params):
        logits = target.task.apply(params, {"x": x, "mask": jnp.ones(target.shape[0], bool)})
        return -jnp.mean(jnp.sum(share * jax.nn.log_softmax(logits), -1))

    def step(carry, _):
        params, total = carry
        grad = jax.grad(loss)(params)
        return (tree.axpy(-target.lr, grad, params), tree.add(total, grad)), None

    if target.steps == 1:
        return jax.grad(loss)(target.params)
    return jax.lax.scan(step, (target.params, tree.zeros_like(target.params)), None, target.steps)[0][1]


def label(target: Target, change: Tree) -> jax.Array:
    """int32 [1]: the label of one example, read off the last layer (3).

    Raises:
      ValueError: the model has no dense layer "head" with a column for each class.
    """
    leaves = jax.tree_util.tree_leaves_with_path(change)
    found = [x for path, x in leaves if "'head'" in jax.tree_util.keystr(path) and x.ndim == 2 and x.shape[-1] == target.classes]
    if len(found) != 1:
        raise ValueError(f"task '{target.task.name}': a label is read off a dense layer 'head' with {target.classes} columns, which it has not; choose dlg")
    return jnp.argmax(jnp.sum(jnp.asarray(found[0], jnp.float32), 0))[None].astype(jnp.int32)  # of the change: the gradient's sign is the other


def squared(one: Tree, other: Tree) -> jax.Array:
    """||one - other||^2."""
    return tree.norm(tree.sub(one, other), squared=True)


def cosine(one: Tree, other: Tree) -> jax.Array:
    """Of the angle between two trees."""
    return tree.vdot(one, other) / jnp.maximum(tree.norm(one) * tree.norm(other), 1e-12)


def variation(x: jax.Array) -> jax.Array:
    """Mean difference of neighboring pixels of pictures [B, H, W, ...]; 0 of anything else."""
    if x.ndim < 4:
        return jnp.float32(0)
    return sum(jnp.mean(jnp.abs(jnp.diff(x, axis=axis))) for axis in (1, 2))


def lbfgs(f: Callable[[Tree], jax.Array], start: Tree, iterations: int) -> Tree:
    """The last of so many iterates."""
    optimizer, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(f)

    def step(carry, _):
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        update, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=f)
        return (optax.apply_updates(x, update), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), None, iterations)[0][0]


def closest(search: Callable[[Key], Tree], distance: Callable[[Tree], jax.Array], key: Key, restarts: int) -> tuple[Tree, jax.Array]:
    """The best of several searches, and its distance."""
    found = jax.vmap(search)(jax.random.split(key, restarts))
    far = jax.vmap(distance)(found)
    far = jnp.where(jnp.isfinite(far), far, jnp.inf)
    return jax.tree.map(lambda x: x[jnp.argmin(far)], found), jnp.min(far)


__all__ = ["Inversion", "Leak", "Target", "dlg", "geiping", "idlg", "label", "sent"]
