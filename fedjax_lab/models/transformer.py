"""A small pre-norm Transformer for text, and the block that the ViT shares.

Every matrix product is made by the attribute `dense`, a factory called as `dense(features, name=...)` with the names query, key,
value, out, up, down and head (and patch in the ViT), so that adapters enter without touching this file:

    class LowRank(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            down = nn.Dense(4, use_bias=False, name="a")(x)
            return nn.Dense(self.features, name="base")(x) + nn.Dense(self.features, use_bias=False, name="b")(down)

    module = Transformer(classes=65, dense=LowRank)
"""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

Dense = Callable[..., nn.Module]


class Attention(nn.Module):
    """Multi-head self-attention on [B, T, D] (Vaswani et al., 2017), where `allowed` (broadcasts to [B, heads, T, T]) holds."""

    heads: int
    dense: Dense

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (self.dense(width, name=name)(x).reshape(split) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * split[-1] ** -0.5
        if allowed is not None:
            scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return self.dense(width, name="out")(y.reshape(x.shape))


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)) with GELU and four times the width: 12 D^2 + 13 D parameters."""

    heads: int
    dense: Dense
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None = None, train: bool = False) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        width = x.shape[-1]
        x = x + drop(Attention(self.heads, self.dense, name="attention")(nn.LayerNorm(name="norm_0")(x), allowed))
        y = nn.gelu(self.dense(4 * width, name="up")(nn.LayerNorm(name="norm_1")(x)))
        return x + drop(self.dense(width, name="down")(y))


class Transformer(nn.Module):
    """Text Transformer with learned positions; int32 tokens [B, T] in, T at most `length`.

    causal: logits [B, T, classes] for the next token, each position seeing itself and what came before. Otherwise logits
    [B, classes] for the text, from the mean over the positions whose token is not `padding`, which nobody attends to.
    vocabulary: the number of input tokens, by default that of classes.

    (vocabulary + length + 2) D + depth (12 D^2 + 13 D) + (D + 1) classes parameters: 216,641 for 65 characters and the defaults.
    """

    classes: int = 65
    vocabulary: int | None = None
    causal: bool = True
    width: int = 64
    depth: int = 4
    heads: int = 4
    length: int = 128
    padding: int = 0
    dropout: float = 0.0
    dense: Dense = nn.Dense

    def setup(self) -> None:
        self.embed = nn.Embed(self.vocabulary or self.classes, self.width)
        self.blocks = [Block(self.heads, self.dense, self.dropout) for _ in range(self.depth)]
        self.norm = nn.LayerNorm()
        self.head = self.dense(self.classes, name="head")

    @nn.compact
    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, T, D] if causal, else [B, D]."""
        if x.shape[1] > self.length:
            raise ValueError(f"transformer: the text has {x.shape[1]} positions, length is {self.length}")
        real = (x != self.padding)[:, :, None]
        causal = jnp.tri(x.shape[1], dtype=bool)
        allowed = causal if self.causal else real[:, None, None, :, 0]
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        z = self.embed(x) + positions[:x.shape[1]]
        for block in self.blocks:
            z = block(z, allowed, train)
        z = self.norm(z)
        return z if self.causal else (z * real).sum(1) / jnp.maximum(real.sum(1), 1)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, train))
