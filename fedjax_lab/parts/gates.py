"""Blocks of a model's parameters, and the layer that says from a batch of inputs how much each of them matters.

A gate normalizes inputs by a learned mixture of each example's, each position's and the batch's moments (Luo et al., "Differentiable
Learning-to-Normalize via Switchable Normalization", ICLR 2019), maps them linearly to a number per block, normalizes these over the batch,
and takes the mean over the batch of their sigmoids.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, tree
from fedjax_lab.parts.solvers.knapsack import greedy
from fedjax_lab.types import Batch, Key, Tree

EPS = 1e-5


class Blocks(NamedTuple):
    """L contiguous blocks of a model's tensors, leaf by leaf. size: int32 [L];  first: bool [L], of its tensor;  dense: bool [L], of a tensor
    of at most two axes;  at: per leaf (number of its first block, blocks, entries of a block), None where no gradient moves it."""

    size: np.ndarray
    first: np.ndarray
    dense: np.ndarray
    at: tuple[tuple[int, int, int] | None, ...]

    def spread(self, values: jax.Array, params: Tree) -> Tree:
        """params, every block times its entry of values [L]."""

        def one(leaf, at):
            start, count, width = at
            return leaf * jnp.repeat(values[start : start + count], width, total_repeat_length=count * width)[: leaf.size].reshape(leaf.shape)

        leaves, structure = jax.tree.flatten(params)
        return jax.tree.unflatten(structure, [leaf if at is None else one(leaf, at) for leaf, at in zip(leaves, self.at, strict=True)])

    def changed(self, change: Tree) -> jax.Array:
        """bool [L]: the blocks of which an entry is not zero."""
        found = [jnp.any(jnp.pad((leaf != 0).ravel(), (0, at[1] * at[2] - leaf.size)).reshape(at[1], at[2]), 1)
                 for leaf, at in zip(jax.tree.leaves(change), self.at, strict=True) if at is not None]
        return jnp.concatenate(found)

    def kept(self, value: jax.Array, share: jax.Array) -> jax.Array:
        """bool [L]: every tensor's first block, and of the others a knapsack of whole numbers round(10 value), such that at most this share
        of the parameters of tensors with at most two axes is kept, and of the others."""
        mask = jnp.asarray(self.first)
        for group in (self.dense, ~self.dense):
            room = jnp.floor(share * self.size[group].sum() + 1e-3).astype(jnp.int32) - self.size[group & self.first].sum()
            size = jnp.where(group & ~self.first, self.size, np.iinfo(np.int32).max)
            mask |= greedy(jnp.round(10 * value), size, jnp.maximum(room, 0))
        return mask


def blocks(like: Tree, most: int) -> Blocks:
    """Up to `most` equal blocks of every tensor of a model, the last of a tensor smaller where it does not divide."""
    size, first, dense, at = [], [], [], []
    for leaf, moves in zip(jax.tree.leaves(like), jax.tree.leaves(tree.trainable(like)), strict=True):
        width = -(-leaf.size // most)
        count = -(-leaf.size // width)
        at.append((len(size), count, width) if moves else None)
        if moves:
            size += [min(width, leaf.size - i * width) for i in range(count)]
            first += [i == 0 for i in range(count)]
            dense += [len(leaf.shape) < 3] * count
    return Blocks(np.array(size, np.int32), np.array(first), np.array(dense), tuple(at))


def least(made: Blocks) -> float:
    """The smallest share of the parameters that can be kept."""
    groups = [group for group in (made.dense, ~made.dense) if group.any()]
    return max(made.size[group & made.first].sum() / made.size[group].sum() for group in groups)


def gate(key: Key, shape: tuple[int, ...], count: int, names: tuple[str, ...]) -> Tree:
    """First parameters for inputs of this shape and `count` blocks; names: of the numbers per block that it gives."""
    channels, inputs = shape[-1] if len(shape) == 3 else 1, int(np.prod(shape))
    found = {"input": {"means": jnp.zeros(3), "variances": jnp.zeros(3), "scale": jnp.ones(channels), "shift": jnp.zeros(channels)}}
    for name in names:
        kernel = jax.random.uniform(keys.purpose(key, name), (inputs, count), minval=-1.0, maxval=1.0) / np.sqrt(inputs)
        found[name] = {"kernel": kernel, "bias": jnp.zeros(count), "scale": jnp.ones(count), "shift": jnp.zeros(count)}
    return found


def opened(params: Tree, batch: Batch) -> dict[str, jax.Array]:
    """{name: [L] in (0, 1)} of a batch."""
    x, mask = batch["x"], batch["mask"]
    x = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)
    there = jnp.where(mask, 1.0, 0.0) / jnp.maximum(jnp.sum(mask), 1)
    x = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0).reshape(len(x), -1, x.shape[-1] if x.ndim == 4 else 1)
    z = _switched(params["input"], x, there).reshape(len(x), -1)
    found = {}
    for name, p in params.items():
        if name != "input":
            h = z @ p["kernel"] + p["bias"]
            mean = there @ h
            h = (h - mean) * jax.lax.rsqrt(there @ (h - mean) ** 2 + EPS) * p["scale"] + p["shift"]
            found[name] = there @ jax.nn.sigmoid(h)
    return found


def _switched(p: Tree, x: jax.Array, there: jax.Array) -> jax.Array:
    """Switchable normalization of x [B, P, C], whose examples count as `there` [B] says."""
    by_batch = jnp.einsum("b,bpc->c", there, x) / x.shape[1]
    means = (jnp.mean(x, 1, keepdims=True), jnp.mean(x, (1, 2), keepdims=True), by_batch)
    variances = (jnp.var(x, 1, keepdims=True), jnp.var(x, (1, 2), keepdims=True), jnp.einsum("b,bpc->c", there, (x - by_batch) ** 2) / x.shape[1])
    a, b = jax.nn.softmax(p["means"]), jax.nn.softmax(p["variances"])
    mean, variance = (sum(w * m for w, m in zip(weights, found, strict=True)) for weights, found in ((a, means), (b, variances)))
    return (x - mean) * jax.lax.rsqrt(variance + EPS) * p["scale"] + p["shift"]
