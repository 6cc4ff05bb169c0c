"""Multi-layer perceptrons, among them the 2NN of McMahan et al. (AISTATS 2017)."""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from flax import linen as nn


class MLP(nn.Module):
    """ReLU layers of these widths on the flattened input, then the head. Gives logits [B, classes].

    The default is the 2NN, 784-200-200-10: 199,210 parameters. In general the sum of (in + 1) * out over the layers, of in * out
    without `bias`. norm=layer normalizes after every ReLU, without scale and shift (FedLN, TMLR 2024).
    """

    widths: tuple[int, ...] = (200, 200)
    classes: int = 10
    bias: bool = True
    norm: Literal["none", "layer"] = "none"
    dense: Callable[..., nn.Module] = nn.Dense

    def setup(self) -> None:
        options = {} if self.bias else {"use_bias": False}
        self.body = [self.dense(width, **options) for width in self.widths]
        self.head = self.dense(self.classes, **options)
        self.normalize = nn.LayerNorm(use_bias=False, use_scale=False) if self.norm == "layer" else lambda x: x

    def features(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for layer in self.body:
            x = self.normalize(nn.relu(layer(x)))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
