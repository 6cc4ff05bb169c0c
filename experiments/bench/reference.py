"""FedAvg in plain JAX, a page that shares no code with the library: what the library is measured against.

The data is on the device and a round is one jitted call: a cohort without replacement, a permutation per client, local SGD, the mean.
`scanned` scans over the clients, cut over the devices by shard_map; `looped` calls one jitted client update from a Python loop.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Params = list[tuple[jax.Array, jax.Array]]  # (kernel, bias) per layer: [in, out] dense, [h, w, in, out] convolution


class Setup(NamedTuple):
    """params: the first model;  round: (params, key) -> params, with a cohort by the key;  examples: how many a round trains on."""

    params: Params
    round: Callable[[Params, jax.Array], Params]
    examples: int


def init(key: jax.Array, shapes: Sequence[tuple[int, ...]]) -> Params:
    """Normal kernels with variance 1 / fan-in, and zero biases."""
    keys = jax.random.split(key, len(shapes))
    return [(jax.random.normal(k, s) / np.sqrt(np.prod(s[:-1])), jnp.zeros(s[-1])) for k, s in zip(keys, shapes, strict=True)]


def conv(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution [B, H, W, I] with [k, k, I, O], k odd. Its gradients are convolutions in the same layout, which XLA's own are not:
    those take ten times as long inside a loop on a CPU."""
    return conv(x, kernel, kernel.shape[0] // 2)


def same_gradients(saved, g):
    x, kernel = saved
    pad = kernel.shape[0] // 2
    from_kernel = conv(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), pad).transpose(1, 2, 0, 3)
    return conv(g, kernel[::-1, ::-1].swapaxes(2, 3), pad), from_kernel


same.defvjp(lambda x, kernel: (same(x, kernel), (x, kernel)), same_gradients)


def apply(params: Params, x: jax.Array) -> jax.Array:
    """Logits: convolutions with 2x2 max pooling while kernels have four axes, then dense layers, ReLU between all."""
    for kernel, bias in params[:-1]:
        if kernel.ndim == 4:
            b, h, w, _ = x.shape
            x = same(x, kernel).reshape(b, h // 2, 2, w // 2, 2, -1).max((2, 4)) + bias
        else:
            x = x.reshape(x.shape[0], -1) @ kernel + bias
        x = jax.nn.relu(x)
    kernel, bias = params[-1]
    return x.reshape(x.shape[0], -1) @ kernel + bias


def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean softmax cross entropy."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), y[:, None], 1))


def update(params: Params, x: jax.Array, y: jax.Array, rows: jax.Array, key: jax.Array, batch: int, lr: float) -> Params:
    """One client's epoch of SGD over its rows of the data, reshuffled."""
    order = jax.random.permutation(key, rows).reshape(-1, batch)

    def step(params, rows):
        return jax.tree.map(lambda p, g: p - lr * g, params, jax.grad(loss)(params, x[rows], y[rows])), None

    return lax.scan(step, params, order)[0]


def scanned(shapes: Sequence[tuple[int, ...]], x: Any, y: Any, rows: Any, cohort: int, batch: int, lr: float, devices: int,
            key: jax.Array) -> Setup:
    """A round as one call, clients one after the other on each device.

    Args:
      shapes: of the model's kernels.
      x, y: examples [M, ...] and labels [M].
      rows: [N, n], the examples of every client; n is a multiple of `batch`.
      cohort: clients in a round, a multiple of `devices`.
    """
    mesh = Mesh(np.array(jax.devices()[:devices]), ("clients",), axis_types=(AxisType.Auto,))

    def device(params, x, y, rows, keys):
        params, x, y = lax.pcast((params, x, y), "clients", to="varying")

        def client(total, mine):
            return jax.tree.map(jnp.add, total, update(params, x, y, *mine, batch, lr)), None

        total = lax.scan(client, jax.tree.map(jnp.zeros_like, params), (rows, keys))[0]
        return jax.tree.map(lambda t: lax.psum(t, "clients") / cohort, total)

    across = jax.shard_map(device, mesh=mesh, in_specs=(P(), P(), P(), P("clients"), P("clients")), out_specs=P())

    @jax.jit
    def one(params, x, y, rows, key):
        who, work = jax.random.split(key)
        return across(params, x, y, rows[jax.random.permutation(who, rows.shape[0])[:cohort]], jax.random.split(work, cohort))

    data = jax.device_put((jnp.asarray(x), jnp.asarray(y), jnp.asarray(rows)), NamedSharding(mesh, P()))
    params = jax.device_put(init(key, shapes), NamedSharding(mesh, P()))
    return Setup(params, lambda params, key: one(params, *data, key), cohort * rows.shape[1])


def looped(shapes: Sequence[tuple[int, ...]], x: Any, y: Any, rows: Any, cohort: int, batch: int, lr: float, key: jax.Array) -> Setup:
    """A round as a Python loop over its clients, one call each, on the first device; arguments as for `scanned`."""
    x, y, rows, device = jnp.asarray(x), jnp.asarray(y), jnp.asarray(rows), jax.devices()[0]
    step = jax.jit(functools.partial(update, batch=batch, lr=lr))
    add = jax.jit(functools.partial(jax.tree.map, jnp.add))

    def one(params, key):
        who, work = jax.random.split(key)
        ids, total = jax.random.permutation(who, rows.shape[0])[:cohort], jax.tree.map(jnp.zeros_like, params)
        for i, k in zip(np.asarray(ids), jax.random.split(work, cohort)):
            total = add(total, step(params, x, y, rows[i], k))
        return jax.tree.map(lambda t: t / cohort, total)

    return Setup(jax.device_put(init(key, shapes), device), one, cohort * rows.shape[1])
