"""Plain convolutional networks for images [B, H, W, C]."""
from __future__ import annotations

import jax
from flax import linen as nn

from fedjax_lab.models.conv import Conv, max_pool


class CNN(nn.Module):
    """The CNN of McMahan et al. (AISTATS 2017): two 5x5 convolutions (32, 64, SAME), each with 2x2 max pooling, 512 units, softmax.

    28x28x1 to 10 classes: 1,663,370 parameters. Gives logits [B, classes]. `lowering` as in `Conv`.
    """

    classes: int = 10
    widths: tuple[int, ...] = (32, 64)
    hidden: int = 512
    lowering: str = "auto"

    def setup(self) -> None:
        self.convs = [Conv(width, (5, 5), lowering=self.lowering) for width in self.widths]
        self.hidden_layer = nn.Dense(self.hidden)
        self.head = nn.Dense(self.classes)

    def features(self, x: jax.Array) -> jax.Array:
        for layer in self.convs:
            x = nn.relu(max_pool(layer(x)))  # relu and max commute, and the smaller array is the cheaper one
        return nn.relu(self.hidden_layer(x.reshape(x.shape[0], -1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling, as the federated literature uses it.

    Two 5x5 convolutions (6, 16), each with 2x2 max pooling, 120 and 84 units. `padding` is that of the first: SAME for 28x28, VALID
    for 32x32. 28x28x1 or 32x32x1 to 10 classes: 61,706 parameters; 32x32x3: 62,006. Gives logits [B, classes].
    """

    classes: int = 10
    padding: str = "SAME"
    lowering: str = "auto"

    def setup(self) -> None:
        self.convs = [Conv(6, (5, 5), padding=self.padding, lowering=self.lowering),
                      Conv(16, (5, 5), padding="VALID", lowering=self.lowering)]
        self.dense = [nn.Dense(120), nn.Dense(84)]
        self.head = nn.Dense(self.classes)

    def features(self, x: jax.Array) -> jax.Array:
        least = 12 if self.padding == "SAME" else 16
        if min(x.shape[1:3]) < least:
            raise ValueError(f"lenet5: images are {x.shape[1]}x{x.shape[2]}, with padding {self.padding} at least {least}x{least}")
        for layer in self.convs:
            x = nn.relu(max_pool(layer(x)))
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense:
            x = nn.relu(layer(x))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


class GroupNormCNN(nn.Module):
    """A small CNN with group normalization, for 32x32x3.

    Per width: 3x3 convolution (SAME, no bias), group normalization, ReLU, 2x2 max pooling; then 128 units and the head. With widths
    32, 64, 64 and 8 groups, 32x32x3 to 10 classes: 188,970 parameters. Gives logits [B, classes].
    """

    classes: int = 10
    widths: tuple[int, ...] = (32, 64, 64)
    hidden: int = 128
    groups: int = 8
    lowering: str = "auto"

    def setup(self) -> None:
        self.convs = [Conv(width, (3, 3), use_bias=False, lowering=self.lowering) for width in self.widths]
        self.norms = [nn.GroupNorm(self.groups) for _ in self.widths]
        self.hidden_layer = nn.Dense(self.hidden)
        self.head = nn.Dense(self.classes)

    def features(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms):
            x = nn.relu(max_pool(norm(conv(x))))
        return nn.relu(self.hidden_layer(x.reshape(x.shape[0], -1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
