"""Augmentation: changes of the training images that are drawn anew in every step, inside jit.

A text names a chain, `crop:4+flip+rotate:15+noise:0.1`, whose items happen from left to right. An example's change depends on the
key and on the example's place in the batch, on nothing else: neither on the other examples nor on the mask or the size of the
batch. Images are uint8 or float in [0, 1]; they become float32 in [0, 1], as the models make them (models/task.py), before the
model's own normalization. jitter, scale and hide take numbers of any shape (tables, signals) as they are, and cut nothing.

    augment = augmentation("crop:4+flip")
    batch = augment(key, batch)
    task = augmented(task, "crop:4+flip")           # training sees changed images, evaluation does not

Milliseconds for a batch of 32 images of 32x32x3 inside a loop, one core of an AMD EPYC (Zen 4), jax 0.10.2: flip, brightness
and contrast 0.03, crop and cutout 0.06, rotate 0.9, noise 3.9 (its random words); FixMatch's weak version 0.15, the strong one 1.5.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab import keys, spec
from fedjax_lab.spec import NonNegative, Range, Share
from fedjax_lab.types import Batch, Key, Task

Augment = Callable[[Key, Batch], Batch]
"""(key, batch) -> batch of the same shapes, its images float32 in [0, 1]."""

Change = Callable[[Key, jax.Array], jax.Array]
"""(key, image float32 [H, W, C]) -> image: of one example."""

Pixels = Annotated[int, Range(0)]


def crop(pixels: Pixels = 4, *, mode: Literal["zero", "reflect", "edge"] = "zero") -> Change:
    """The image moved by up to so many pixels in each direction: padded, and cut back to its size at random (He et al. 2016).

    Args:
      pixels: padding on each side.
      mode: what stands there.
    """
    def change(key: Key, x: jax.Array) -> jax.Array:
        row, column = _below(key, 2 * pixels + 1, 2 * pixels + 1)
        return jax.lax.dynamic_slice(_padded(x, pixels, pixels, mode), (row, column, 0), x.shape)

    return change


def flip(share: Share = 0.5) -> Change:
    """The image mirrored, left for right.

    Args:
      share: probability of a mirrored image.
    """
    return lambda key, x: jnp.where(jax.random.bernoulli(key, share), x[:, ::-1], x)


def rotate(degrees: NonNegative = 15.0, *, mode: Literal["zero", "edge"] = "zero") -> Change:
    """The image turned about its center by a uniform angle, with bilinear interpolation.

    Args:
      degrees: largest angle, in both directions.
      mode: what stands beyond the image.
    """
    def change(key: Key, x: jax.Array) -> jax.Array:
        return turned(x, jax.random.uniform(key, (), x.dtype, -degrees, degrees), mode)

    return change


def turned(x: jax.Array, degrees: jax.Array, mode: Literal["zero", "edge"] = "zero") -> jax.Array:
    """An image [H, W, C] turned about its center by an angle, counterclockwise as it is seen."""
    height, width, _ = x.shape
    angle = jnp.deg2rad(degrees)
    down, right = jnp.arange(height)[:, None] - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    row = jnp.cos(angle) * down + jnp.sin(angle) * right + (height - 1) / 2
    column = jnp.cos(angle) * right - jnp.sin(angle) * down + (width - 1) / 2
    row, column = jnp.clip(row + 1, 0, height + 1), jnp.clip(column + 1, 0, width + 1)  # in the image with a border of one
    top, left = jnp.floor(row), jnp.floor(column)
    wide = _padded(x, 1, 2, mode)
    corners = jnp.concatenate([wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]], -1)  # so that one gather fetches all four
    at = (top * (width + 2) + left).astype(jnp.int32)
    a, b, c, d = jnp.split(corners.reshape(-1, corners.shape[-1]).at[at].get(mode="promise_in_bounds"), 4, -1)
    low, over = (row - top)[:, :, None], (column - left)[:, :, None]
    return (a * (1 - over) + b * over) * (1 - low) + (c * (1 - over) + d * over) * low


def noise(sigma: NonNegative = 0.1) -> Change:
    """Gaussian noise on every pixel, cut to [0, 1].

    Args:
      sigma: its standard deviation.
    """
    return lambda key, x: jnp.clip(x + sigma * jax.random.normal(key, x.shape, x.dtype), 0, 1)


def brightness(strength: Share = 0.4) -> Change:
    """All pixels times a uniform factor, cut to [0, 1].

    Args:
      strength: the factor lies between 1 - strength and 1 + strength.
    """
    return lambda key, x: jnp.clip(x * _factor(key, x, strength), 0, 1)


def contrast(strength: Share = 0.4) -> Change:
    """Distances to the image's mean times a uniform factor, cut to [0, 1].

    Args:
      strength: the factor lies between 1 - strength and 1 + strength.
    """
    def change(key: Key, x: jax.Array) -> jax.Array:
        gain = _factor(key, x, strength)
        return jnp.clip(gain * x + (1 - gain) * x.mean(), 0, 1)

    return change


def cutout(pixels: Pixels = 16, *, fill: Share = 0.5) -> Change:
    """A gray square about a uniformly drawn pixel; what lies beyond the image is lost (DeVries and Taylor 2017).

    Args:
      pixels: side of the square.
      fill: what stands there.
    """
    def change(key: Key, x: jax.Array) -> jax.Array:
        row, column = _below(key, *x.shape[:2]) - pixels // 2
        rows, columns = jnp.arange(x.shape[0])[:, None, None], jnp.arange(x.shape[1])[:, None]
        inside = (rows >= row) & (rows < row + pixels) & (columns >= column) & (columns < column + pixels)
        return jnp.where(inside, jnp.asarray(fill, x.dtype), x)

    return change


def jitter(sigma: NonNegative = 0.1) -> Change:
    """Gaussian noise on every number.

    Args:
      sigma: its standard deviation.
    """
    return lambda key, x: x + sigma * jax.random.normal(key, x.shape, x.dtype)


def scale(sigma: NonNegative = 0.1) -> Change:
    """All numbers times one Gaussian factor of mean 1.

    Args:
      sigma: the factor's standard deviation.
    """
    return lambda key, x: x * (1 + sigma * jax.random.normal(key, (), x.dtype))


def hide(share: Share = 0.2) -> Change:
    """Numbers that become zero.

    Args:
      share: the probability of each.
    """
    return lambda key, x: jnp.where(jax.random.bernoulli(key, share, x.shape), 0, x)


ANYWHERE: dict[str, Callable[..., Change]] = {f.__name__: f for f in (jitter, scale, hide)}
AUGMENTATIONS: dict[str, Callable[..., Change]] = {f.__name__: f for f in (crop, flip, rotate, noise, brightness, contrast, cutout)} | ANYWHERE


def augmentation(text: str) -> Augment:
    """The chain that a text names.

    Raises:
      ValueError: an unknown name or option; or, when it is called, a batch whose "x" is not what the chain is for.
    """
    items = spec.chain(text)
    changes = [spec.build("augmentation", item, AUGMENTATIONS) for item in items]
    inputs = _numbers if all(spec.parse(item)[0] in ANYWHERE for item in items) else _images

    def augment(key: Key, batch: Batch) -> Batch:
        x = inputs(batch)

        def one(place: jax.Array, x: jax.Array) -> jax.Array:
            own = jax.random.fold_in(key, place)
            for number, change in enumerate(changes):
                x = change(jax.random.fold_in(own, number), x)
            return x

        return {**batch, "x": jax.vmap(one)(jnp.arange(x.shape[0], dtype=jnp.int32), x)}

    return augment


def weak_strong(key: Key, batch: Batch, weak: str | None = None, strong: str | None = None) -> tuple[Batch, Batch]:
    """Two versions of a batch for semi-supervised work, as in FixMatch (Sohn et al., NeurIPS 2020): what the model says of the weak
    one is the label of the strong one.

    Args:
      weak, strong: chains. By default, of images, the paper's weak one, a flip and a shift by up to an eighth of the side; and, for the
        paper's RandAugment, that with a turn, brightness, contrast and a gray square of half the side. Of other numbers some noise;
        and more of it with a common factor and a fifth of the numbers hidden.
    """
    usual = _usual(batch) if weak is None or strong is None else (weak, strong)
    weak, strong = (text if given is None else given for given, text in zip((weak, strong), usual, strict=True))
    return augmentation(weak)(keys.purpose(key, "weak"), batch), augmentation(strong)(keys.purpose(key, "strong"), batch)


def two_views(key: Key, batch: Batch, text: str | None = None) -> tuple[Batch, Batch]:
    """Two versions of a batch from one chain, for contrastive work (Chen et al., ICML 2020).

    Args:
      text: the chain; by default a shift by up to a quarter of the side, a flip, brightness and contrast.
    """
    text = f"crop:{_side(batch) // 4}+flip+brightness+contrast" if text is None else text
    return tuple(augmentation(text)(keys.purpose(key, view), batch) for view in ("first", "second"))


def augmented(task: Task, text: str, example: Batch | None = None) -> Task:
    """The task whose loss, outputs and features see changed images in training, that is where they are given a key.

    With one key all three see the same images. Without a key, as in evaluation, nothing is changed.

    Args:
      text: the chain.
      example: a batch of any size; where it is given, what is no image is refused now and not in training.
    """
    augment = augmentation(text)
    if example is not None:
        jax.eval_shape(augment, jax.random.key(0), {k: v[:1] for k, v in example.items()})

    def seen(batch: Batch, key: Key | None) -> Batch:
        return batch if key is None else augment(keys.purpose(key, "augment"), batch)

    def wrapped(function: Callable) -> Callable:
        return lambda params, batch, key=None: function(params, seen(batch, key), key)

    features = None if task.features is None else wrapped(task.features)
    return task._replace(loss=wrapped(task.loss), apply=wrapped(task.apply), features=features)


def _usual(batch: Batch) -> tuple[str, str]:
    if _numbers(batch).ndim != 4:
        return "jitter:0.05", "jitter:0.1+scale:0.2+hide:0.2"
    shift = f"crop:{_side(batch) // 8},mode=reflect+flip"
    return shift, f"{shift}+rotate:30+brightness+contrast+cutout:{_side(batch) // 2}"


def _side(batch: Batch) -> int:
    return min(_images(batch).shape[1:3])


def _images(batch: Batch) -> jax.Array:
    if "x" not in batch or batch["x"].ndim != 4:
        raise ValueError(f"augmentation needs images 'x' [B, H, W, channels], uint8 or float; the batch has {_held(batch)}")
    return _numbers(batch)


def _numbers(batch: Batch) -> jax.Array:
    x = batch.get("x")
    if x is None or not (x.dtype == jnp.uint8 or jnp.issubdtype(x.dtype, jnp.floating)):
        raise ValueError(f"augmentation needs images 'x' [B, H, W, channels], uint8 or float, or other floats; the batch has {_held(batch)}")
    return x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)


def _held(batch: Batch) -> str:
    return ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in batch.items())


def _padded(x: jax.Array, before: int, after: int, mode: str) -> jax.Array:
    return jnp.pad(x, ((before, after), (before, after), (0, 0)), {"zero": "constant"}.get(mode, mode))


def _below(key: Key, *numbers: int) -> jax.Array:
    """int32, one uniform number below each; quicker to compile than random.randint."""
    return (jax.random.uniform(key, (len(numbers),)) * jnp.asarray(numbers)).astype(jnp.int32)


def _factor(key: Key, x: jax.Array, strength: float) -> jax.Array:
    return jax.random.uniform(key, (), x.dtype, 1 - strength, 1 + strength)
