"""Losses with a value per example: their mean over a batch, and how far two softmaxes are from each other."""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lab.local import Direction
from fedjax_lab.types import Batch, Tree


def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of values [B] where mask [B] holds; 0, without slope, where it holds nowhere.

    >>> float(mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])))
    1.5
    """
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def direction(each: Callable[[Tree, Batch], jax.Array]) -> Direction:
    """The gradient of the mean over a batch of each(params, batch) [B]; normalization statistics stay what they are."""

    def along(key, params, batch):
        value, grad = jax.value_and_grad(lambda y: mean(each(y, batch), batch["mask"]))(params)
        return value, grad, ()

    return along


def divergence(targets: jax.Array, outputs: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL( targets || softmax(outputs / temperature) ) in nats [B], of probabilities and logits [B, C].

    >>> divergence(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.zeros((2, 2))).round(4).tolist()
    [0.0, 0.6931]
    """
    return jnp.sum(jax.scipy.special.xlogy(targets, targets) - targets * jax.nn.log_softmax(outputs / temperature), -1)


def between(outputs: jax.Array, others: jax.Array) -> jax.Array:
    """KL( softmax(outputs) || softmax(others) ) in nats [B], of logits [B, C] both; its slope in both is sound.

    >>> between(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [0.0]
    """
    said, other = jax.nn.log_softmax(outputs), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(said) * (said - other), -1)
