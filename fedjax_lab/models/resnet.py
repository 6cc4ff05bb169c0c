"""Residual networks for images [B, H, W, C], with a choice of normalization."""
from __future__ import annotations

import functools

import jax
from flax import linen as nn

from fedjax_lab.models.conv import Conv

NORMS = ("batch", "group", "layer", "none", "weight_standardized")
RELU_GAIN = 1.7139588594436646  # sqrt(2 / (1 - 1 / pi)): ReLU of a standard normal, times this, has variance 1


class Norm(nn.Module):
    """Normalization of [B, H, W, C] before the ReLU; scale and bias per channel, none for "none" and "weight_standardized".

    "batch" over the unmasked examples of the batch in training mode, with running statistics in the collection "batch_stats";
    "group" over groups of channels; "layer" over all channels and positions of an example (one group).
    """

    kind: str
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        if self.kind == "batch":
            where = None if mask is None else mask[:, None, None, None]
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=where)
        if self.kind in ("group", "layer"):
            return nn.GroupNorm(self.groups if self.kind == "group" else 1)(x)
        return x


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes (He et al., CVPR 2016).

    Without normalization of activations the sum is divided by sqrt(2), so that its variance does not grow with depth, and the
    weight-standardized variant scales its ReLU as FedWon does (ICLR 2024).
    """

    width: int
    stride: int
    norm: str
    groups: int
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        conv = convolution(self.norm, self.lowering)
        norm = functools.partial(Norm, self.norm, self.groups)
        stride = (self.stride, self.stride)
        y = norm(name="norm_0")(conv(self.width, strides=stride, name="conv_0")(x), train, mask)
        y = norm(name="norm_1")(conv(self.width, name="conv_1")(activation(self.norm, y)), train, mask)
        if x.shape != y.shape:
            x = norm(name="norm_shortcut")(conv(self.width, (1, 1), stride, name="conv_shortcut")(x), train, mask)
        return activation(self.norm, (x + y) * (2 ** -0.5 if self.norm in ("none", "weight_standardized") else 1))


def convolution(norm: str, lowering: str) -> functools.partial:
    """The convolution that goes with a norm: with a bias where no norm has one, standardized where asked."""
    return functools.partial(Conv, use_bias=norm in ("none", "weight_standardized"), standardized=norm == "weight_standardized",
                             kernel_init=nn.initializers.he_normal(), lowering=lowering)


def activation(norm: str, x: jax.Array) -> jax.Array:
    return nn.relu(x) * RELU_GAIN if norm == "weight_standardized" else nn.relu(x)


class ResNet(nn.Module):
    """Residual network for small images: 3x3 stem, stages of blocks, global average pooling, head. Gives logits [B, classes].

    blocks: residual blocks per stage; the width starts at `width` and doubles, the image halves, from stage to stage.
    norm: one of NORMS; groups is for "group" and has to divide the widths. Statistics: see `Norm` and `make_task`.

    Parameters for 3 channels and 10 classes, by norm (batch, group and layer; none; weight_standardized):
      ResNet-8, blocks (1, 1, 1), width 16: 78,042; 77,706; 78,042.
      ResNet-18, blocks (2, 2, 2, 2), width 64: 11,173,962; 11,169,162; 11,173,962.
    """

    classes: int = 10
    blocks: tuple[int, ...] = (1, 1, 1)
    width: int = 16
    norm: str = "group"
    groups: int = 8
    lowering: str = "auto"

    def setup(self) -> None:
        self.head = nn.Dense(self.classes)

    @nn.compact
    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        if self.norm not in NORMS:
            raise ValueError(f"resnet: norm {self.norm!r} is not one of {', '.join(NORMS)}")
        x = convolution(self.norm, self.lowering)(self.width, name="stem")(x)
        x = activation(self.norm, Norm(self.norm, self.groups, name="norm")(x, train, mask))
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                block = Block(self.width * 2 ** stage, stride, self.norm, self.groups, self.lowering, name=f"stage_{stage}_{i}")
                x = block(x, train, mask)
        return x.mean((1, 2))

    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.head(self.features(x, train, mask))


ResNet8 = functools.partial(ResNet, blocks=(1, 1, 1), width=16)
ResNet18 = functools.partial(ResNet, blocks=(2, 2, 2, 2), width=64)
