"""Convolution and pooling whose gradients are fast inside a loop.

XLA's gradient of a convolution comes out in layouts for which its CPU backend has no fast kernel; a layer of the McMahan CNN then
costs fifteen times what it should. So the layer here chooses how it is written. Images are NHWC, kernels HWIO.

- "xla": `lax.conv_general_dilated` as it is.
- "canonical": the same forward, but both gradients are again plain NHWC/HWIO convolutions. For y = x * w,
  dx = dy * flip(w)^T, and dw = x^T * dy^T, where ^T makes channels the batch and the batch the channels.
- "patches": shifted slices side by side and one matrix product; under `vmap` with a kernel per client, one batched product.
- "auto": what was fastest for the backend, see `choose`.

All lowerings are the same function and differentiate any number of times, forward and backward, at any stride.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

LOWERINGS = ("auto", "xla", "canonical", "patches")
NHWC = ("NHWC", "HWIO", "NHWC")


def choose(backend: str, kernel_size: Sequence[int], strides: Sequence[int]) -> str:
    """The lowering that "auto" stands for.

    Measured on one core of an AMD EPYC (Zen 4), jax 0.10.2, forward and both gradients in a `fori_loop`, batch 10, milliseconds:

        kernel, channels, stride, image     xla     canonical   patches
        5x5, 32 to 64, 1, 14x14             151     8.3         11.0
        3x3, 16 to 16, 1, 32x32             69      4.1         5.4
        3x3, 32 to 64, 1, 16x16             111     5.1         6.0
        3x3, 16 to 32, 2, 32x32             37      1.8         1.4
        1x1, 16 to 32, 2, 32x32             2.5     0.65        0.21
        5 clients vmapped, first row        827     220         89
        SGD step of the McMahan CNN         174     13          17.5

    Off the CPU it is "xla", where nothing was measured.
    """
    if backend != "cpu":
        return "xla"
    return "canonical" if max(strides) == 1 and max(kernel_size) > 1 else "patches"


def conv(x: jax.Array, kernel: jax.Array, strides: Sequence[int] = (1, 1), padding: str | Sequence[tuple[int, int]] = "SAME",
         lowering: str = "auto") -> jax.Array:
    """Convolution of x [B, H, W, I] with kernel [h, w, I, O], to [B, H', W', O].

    Args:
      strides: two numbers.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)), none of them negative.
      lowering: one of LOWERINGS.
    """
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering {lowering!r} is not one of {', '.join(LOWERINGS)}")
    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        raise ValueError(f"padding {padding!r} is not one of SAME, VALID or pairs of integers")
    x, kernel = alike(x, kernel)
    strides, size = tuple(strides), kernel.shape[:2]
    pads = lax.padtype_to_pads(x.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    name = choose(jax.default_backend(), size, strides) if lowering == "auto" else lowering
    return {"xla": _plain, "canonical": _canonical, "patches": _patches}[name](x, kernel, strides, pads)


def alike(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both with one dtype and, inside shard_map, varying over the same mesh axes, as a custom derivative needs them."""
    dtype = jnp.result_type(x, y)
    zero = jnp.zeros_like(x.ravel()[0], dtype) + jnp.zeros_like(y.ravel()[0], dtype)  # varies as either does, folds away
    return x.astype(dtype) + zero, y.astype(dtype) + zero


def _plain(x, kernel, strides, pads, input_dilation=(1, 1), kernel_dilation=(1, 1)):
    return lax.conv_general_dilated(x, kernel, strides, pads, input_dilation, kernel_dilation, dimension_numbers=NHWC)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _canonical(x, kernel, strides, pads):
    return _plain(x, kernel, strides, pads)


@_canonical.defjvp
def _canonical_jvp(strides, pads, primals, tangents):
    """The tangents are transposes of the gradients wanted, so that reverse mode, transposing once more, runs exactly those."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _plain(x, kernel, strides, pads)
    from_x = jax.linear_transpose(lambda g: _input_gradient(g, kernel, x.shape, strides, pads), y)
    from_kernel = jax.linear_transpose(lambda g: _kernel_gradient(g, x, kernel.shape, strides, pads), y)
    return y, from_x(dx)[0] + from_kernel(dkernel)[0]


def _input_gradient(g, kernel, shape, strides, pads):
    sizes = zip(kernel.shape, shape[1:3], g.shape[1:3], strides, pads)
    around = [(k - 1 - low, n + low - 1 - (m - 1) * s) for k, n, m, s, (low, _) in sizes]
    return _plain(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), around, input_dilation=strides)


def _kernel_gradient(g, x, shape, strides, pads):
    sizes = zip(shape, x.shape[1:3], g.shape[1:3], strides, pads)
    around = [(low, k + (m - 1) * s - n - low) for k, n, m, s, (low, _) in sizes]
    out = _plain(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), around, kernel_dilation=strides)
    return out.transpose(1, 2, 0, 3)


def _patches(x, kernel, strides, pads):
    (h, w, _, out), x = kernel.shape, jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], (h, w), strides))
    slices = [x[:, i:i + (rows - 1) * strides[0] + 1:strides[0], j:j + (columns - 1) * strides[1] + 1:strides[1]]
              for i in range(h) for j in range(w)]
    return (jnp.concatenate(slices, -1).reshape(-1, h * w * x.shape[3]) @ kernel.reshape(-1, out)).reshape(-1, rows, columns, out)


def standardize(kernel: jax.Array, epsilon: float = 1e-4) -> jax.Array:
    """Scaled weight standardization: zero mean and variance 1 / fan-in per output channel (Brock et al., ICLR 2021, eq. 1)."""
    fan_in, axes = kernel.size // kernel.shape[-1], tuple(range(kernel.ndim - 1))
    variance = kernel.var(axes, keepdims=True)
    return (kernel - kernel.mean(axes, keepdims=True)) * lax.rsqrt(jnp.maximum(variance * fan_in, epsilon))


class Conv(nn.Module):
    """Convolution layer [B, H, W, I] -> [B, H', W', features], with parameters "kernel" (HWIO) and "bias".

    Parameter count h * w * I * features + features. `lowering` is one of LOWERINGS; `padding` as in `conv`. With `standardized`
    the kernel is standardized and scaled by a parameter "gain" per output channel, features more parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    use_bias: bool = True
    lowering: str = "auto"
    standardized: bool = False
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        if self.standardized:
            kernel = standardize(kernel) * self.param("gain", nn.initializers.ones, (self.features,))
        y = conv(x, kernel, self.strides, self.padding, self.lowering)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else y


def max_pool(x: jax.Array, window: Sequence[int] = (2, 2), strides: Sequence[int] | None = None, padding: str = "VALID") -> jax.Array:
    """Maximum over windows of x [B, H, W, C]; strides default to the window.

    Where windows do not overlap the gradient goes to exactly one element, the first maximal one in row-major order, as in XLA, but
    without its slow select-and-scatter. Overlapping windows use XLA's.
    """
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if strides != window:
        return nn.max_pool(x, window, strides, padding)
    (h, w), (height, width) = window, x.shape[1:3]
    pads = lax.padtype_to_pads((height, width), window, strides, padding)
    crop = [(low, high, 0) if padding == "SAME" else (0, -(n % k), 0) for (low, high), n, k in zip(pads, (height, width), window)]
    x = lax.pad(x, jnp.asarray(-np.inf, x.dtype), ((0, 0, 0), *crop, (0, 0, 0)))
    batch, height, width, channels = x.shape
    return _block_max(x.reshape(batch, height // h, h, width // w, w, channels))


@jax.custom_jvp
def _block_max(x):
    return x.max((2, 4))


@_block_max.defjvp
def _block_max_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y, (_, _, h, _, w, _) = x.max((2, 4)), x.shape
    order = jnp.arange(h * w, dtype=jnp.int32).reshape(h, 1, w, 1)
    first = jnp.where(x == y[:, :, None, :, None], order, h * w - 1).min((2, 4), keepdims=True)
    return y, jnp.where(order == first, dx, 0).sum((2, 4))
