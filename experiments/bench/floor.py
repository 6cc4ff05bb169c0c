"""What a round must cost at least: its arithmetic at the machine's best matrix product, its memory traffic at the machine's bandwidth.

Arithmetic, from the shapes of the kernels: a layer's product takes 2 x positions x fan-in x outputs operations an example forward, as
many for the kernel's gradient, and as many for the gradient of the layer's input, which the first layer does not need. Elementwise work
is left out. Traffic: every step reads and writes the parameters once; every client reads the server's model, and reads and writes the
sum that its change joins; these pass at the bandwidth measured for arrays of the model's size, which a cache may hold. Every
example is read once, at the bandwidth of memory.
"""
from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import workloads
from fedjax_lab import run

LARGE = 2**27  # bytes of an array that no cache holds
SIZES = (512, 1024, 2048)  # of square products
SECONDS = 0.3  # a measurement is repeated for so long, and the fastest counts


class Work(NamedTuple):
    """What a round takes. operations: of products and convolutions;  traffic: bytes of parameters;  examples: bytes of inputs."""

    operations: float
    traffic: float
    examples: float


def operations(kernels: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> float:
    """Floating-point operations of one example, forward and backward; see above.

    Args:
      kernels: [in, out], or [h, w, in, out] of a convolution that keeps the size and is followed by 2x2 pooling.
      shape: of one input, [H, W, C] before convolutions.
    """
    total, positions = 0, math.prod(shape[:2])
    for i, kernel in enumerate(kernels):
        total += 2 * (positions if len(kernel) == 4 else 1) * math.prod(kernel) * (2 if i == 0 else 3)
        positions //= 4
    return float(total)


def work(prepared: run.Prepared, examples: float) -> Work:
    """What a round with this many examples takes, every one of them once."""
    shape, kernels = workloads.shapes(prepared)
    size = prepared.population.train.examples["x"].dtype.itemsize * math.prod(shape)
    model = 4 * prepared.simulation.plan["parameters"]
    steps = examples / prepared.config.options["batch_size"]
    return Work(examples * operations(kernels, shape), model * (2 * steps + 3 * prepared.config.cohort), examples * size)


def floors(prepared: run.Prepared, examples: float, seconds: float) -> dict[str, float]:
    """Both floors of a round in seconds, the rates they rest on, and the share of the higher one in the time that was measured."""
    needed, devices = work(prepared, examples), prepared.simulation.plan["devices"]
    gflops = sgemm(devices)
    near, far = bandwidth(devices, 4 * prepared.simulation.plan["parameters"]), bandwidth(devices, LARGE)
    arithmetic, memory = needed.operations / gflops / 1e9, (needed.traffic / near + needed.examples / far) / 1e9
    return {"gflop": needed.operations / 1e9, "traffic_gb": needed.traffic / 1e9, "examples_gb": needed.examples / 1e9,
            "sgemm_gflops": gflops, "model_gb_per_second": near, "memory_gb_per_second": far, "arithmetic_seconds": arithmetic, "memory_seconds": memory,
            "fraction": max(arithmetic, memory) / seconds}


@functools.cache
def sgemm(devices: int) -> float:
    """The best rate of float32 products on all devices, in GFLOP/s: XLA's on every device at once and, on CPU cores, numpy's."""
    mesh = _mesh(devices)
    product = jax.jit(jnp.matmul)
    rates = []
    for n in SIZES:
        a = jax.device_put(np.ones((devices, n, n), np.float32), NamedSharding(mesh, P("all")))
        rates.append(devices * 2 * n**3 / best(lambda a=a: product(a, a).block_until_ready()))
        if jax.default_backend() == "cpu":
            b = np.ones((n, n), np.float32)
            rates.append(2 * n**3 / best(lambda b=b: b @ b))
    return max(rates) / 1e9


@functools.cache
def bandwidth(devices: int, size: int) -> float:
    """GB/s of y += a x on every device at once, whose arrays are of `size` bytes: two are read and one is written."""
    cut = NamedSharding(_mesh(devices), P("all"))
    x, y = (jax.device_put(np.ones((devices, max(1, size // 4)), np.float32), cut) for _ in range(2))
    passes = max(1, 2**26 // size)
    update = jax.jit(lambda x, y: jax.lax.fori_loop(0, passes, lambda i, y: y + 0.5 * x, y))
    return 3 * passes * x.nbytes / best(lambda: update(x, y).block_until_ready()) / 1e9


def best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls; the first is apart."""
    call()
    end, times = time.perf_counter() + SECONDS, []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("all",), axis_types=(AxisType.Auto,))
