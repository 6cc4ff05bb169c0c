"""A small network that makes inputs of noise and a label.

    G(z, y) = relu([z, one-hot y] W1 + b1) W2 + b2, through a sigmoid where inputs are images [H, W, channels]
"""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.types import Census, Key, Task, Tree


def init(key: Key, noise: int, classes: int, width: int, shape: tuple[int, ...]) -> Tree:
    """W1 [noise + classes, width], b1, W2 [width, ...], b2 [...] for inputs of this shape: Gaussian weights of variance 2 / fan-in, and
    1 / fan-in in W2."""
    w1 = math.sqrt(2 / (noise + classes)) * jax.random.normal(keys.purpose(key, "w1"), (noise + classes, width))
    w2 = math.sqrt(1 / width) * jax.random.normal(keys.purpose(key, "w2"), (width, *shape))
    return {"w1": w1, "b1": jnp.zeros(width), "w2": w2, "b2": jnp.zeros(shape)}


def made(params: Tree, z: jax.Array, y: jax.Array) -> jax.Array:
    """Inputs [B, ...] of noise z [B, noise] and labels y [B]."""
    labels = jax.nn.one_hot(y, params["w1"].shape[0] - z.shape[1], dtype=z.dtype)
    h = jax.nn.relu(jnp.concatenate([z, labels], -1) @ params["w1"] + params["b1"])
    x = jnp.tensordot(h, params["w2"], 1) + params["b2"]
    return jax.nn.sigmoid(x) if x.ndim == 4 else x


def demanded(name: str, task: Task, census: Census) -> tuple[int, ...]:
    """The shape of one input, which is an image or real numbers.

    Raises:
      ValueError: it is neither.
    """
    x = census.example["x"]
    if not (jnp.issubdtype(x.dtype, jnp.floating) or (x.dtype == jnp.uint8 and len(x.shape) == 3)):
        raise ValueError(f"'{name}' needs inputs that can be generated, images or real numbers; those of task '{task.name}' are {x.dtype}")
    return tuple(x.shape)


def alike(z: jax.Array, x: jax.Array) -> jax.Array:
    """exp( -mean_ij |z_i - z_j|^2 |x_i - x_j|_1 ) of noise [B, n] and inputs [B, ...], norms per entry: 1 where all inputs are one."""
    x = x.reshape(x.shape[0], -1)
    apart = jnp.mean((z[:, None] - z) ** 2, -1) * jnp.mean(jnp.abs(x[:, None] - x), -1)
    return jnp.exp(-jnp.mean(apart))
