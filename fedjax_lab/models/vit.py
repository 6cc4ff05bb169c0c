"""A small Vision Transformer (Dosovitskiy et al., ICLR 2021)."""
from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_lab.models.transformer import Block, Dense


class ViT(nn.Module):
    """Patches, class token, learned positions, pre-norm blocks; the head reads the class token. Gives logits [B, classes].

    Images [B, H, W, C] whose sides `patch` divides. `dense` makes every matrix product, as in `transformer`. Parameters with
    N = HW / patch^2: (patch^2 C + 1) D + (N + 2) D + depth (12 D^2 + 13 D) + 2 D + (D + 1) classes; 208,074 for 32x32x3, 10 classes
    and the defaults.
    """

    classes: int = 10
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    dropout: float = 0.0
    dense: Dense = nn.Dense

    def setup(self) -> None:
        self.embed = self.dense(self.width, name="patch")
        self.blocks = [Block(self.heads, self.dense, self.dropout) for _ in range(self.depth)]
        self.norm = nn.LayerNorm()
        self.head = self.dense(self.classes, name="head")

    @nn.compact
    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        z = self.embed(patches(x, self.patch))
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        z = jnp.concatenate([jnp.broadcast_to(token, (z.shape[0], 1, self.width)).astype(z.dtype), z], 1)
        z = z + self.param("positions", nn.initializers.normal(0.02), (z.shape[1], self.width))
        for block in self.blocks:
            z = block(z, train=train)
        return self.norm(z)[:, 0]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, train))


def patches(x: jax.Array, side: int) -> jax.Array:
    """Images [B, H, W, C] as patches [B, HW / side^2, side^2 C], both in row-major order."""
    batch, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(f"vit: patch {side} does not divide images of {height}x{width}")
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, side * side * channels)
