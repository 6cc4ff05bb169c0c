"""Models with one layer: logistic and linear regression, and a support vector machine."""
from __future__ import annotations

from collections.abc import Callable

import jax
from flax import linen as nn


class LogisticRegression(nn.Module):
    """Softmax regression on the flattened input: inputs * classes + classes parameters (784 to 10: 7,850). Gives logits [B, classes]."""

    classes: int = 10
    dense: Callable[..., nn.Module] = nn.Dense

    def setup(self) -> None:
        self.head = self.dense(self.classes)

    def features(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


class SupportVectors(LogisticRegression):
    """Linear support vector machine on the flattened input: inputs * classes + classes parameters (784 to 10: 7,850). Gives a margin per
    class [B, classes], for the squared hinge."""


class LinearRegression(LogisticRegression):
    """Linear regression on the flattened input: inputs * classes + classes parameters (13 to 1: 14). Gives values [B, classes]."""

    classes: int = 1
