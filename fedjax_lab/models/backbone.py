"""One transformer for the families whose weights are public: GPT-2, LLaMA-type, BERT, ViT, and CLIP of two of them.

    family   norm           positions  MLP                  reads    says
    gpt2     before, layer  learned    GELU (tanh)          text     the next token, by the table of its embeddings
    llama    before, RMS    rotary     SiLU gate x up       text     the next token, by a head
    bert     after, layer   learned    GELU                 text     classes, from a tanh layer on the first token
    vit      before, layer  learned    GELU                 images   classes, from a class token
    clip     before, layer  learned    x sigmoid(1.702 x)   either   a projection, from a class token or a text's largest token

A text model of any family says classes instead of tokens where `pool` says from which position. Every product but that with a table is
an nn.Dense named query, key, value, out, up, down, gate, patch, pooler or head. models/weights.py fills it from files.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_lab.models.vit import patches

Family = Literal["gpt2", "llama", "bert", "vit", "clip"]


class Style(NamedTuple):
    """What sets a family apart; see above. eps: of the norms;  pool: where none is named;  started: a norm before the first block."""

    norm: str = "layer"
    after: bool = False
    rotary: bool = False
    activation: str = "gelu"
    causal: bool = False
    eps: float = 1e-5
    pool: str = "none"
    started: bool = False


STYLES = {
    "gpt2": Style(activation="tanh", causal=True), "llama": Style("rms", rotary=True, activation="swiglu", causal=True, eps=1e-6),
    "bert": Style(after=True, eps=1e-12, pool="first", started=True), "vit": Style(eps=1e-12, pool="first"),
    "clip": Style(activation="quick", causal=True, pool="largest"),
}
ACTIVATIONS = {"gelu": lambda x: nn.gelu(x, approximate=False), "tanh": nn.gelu, "quick": lambda x: x * nn.sigmoid(1.702 * x)}


def normed(style: Style, eps: float, name: str) -> nn.Module:
    """The family's norm."""
    return (nn.RMSNorm if style.norm == "rms" else nn.LayerNorm)(epsilon=eps or style.eps, name=name)


class Backbone(nn.Module):
    """A transformer of one of the families above; int32 tokens [B, T] or images [B, H, W, C] in.

    Gives logits [B, T, classes] for the next token where nothing is pooled, else logits [B, classes].

    vocabulary: tokens in the table, by default as many as classes.   length: most positions of a text.
    kv_heads: heads of keys and values, by default all.   hidden: width of the MLP, by default four times that of the model.
    pool: none, first, last, largest (the position of the largest token) or mean; by default as the family has it.
    patch: side of an image's patches.   theta: base of the rotary angles.   eps: of the norms, 0 for the family's.
    padding: a token that nobody attends to, and that counts in no mean; -1 where there is none.

    205,066 parameters for vit with images of 28x28x1, 10 classes and the defaults.
    """

    classes: int = 2
    family: Family = "gpt2"
    vocabulary: int = 0
    width: int = 64
    depth: int = 4
    heads: int = 4
    kv_heads: int = 0
    hidden: int = 0
    length: int = 128
    pool: Literal["", "none", "first", "last", "largest", "mean"] = ""
    patch: int = 4
    theta: float = 10000.0
    padding: int = -1
    eps: float = 0.0

    @property
    def style(self) -> Style:
        return STYLES[self.family]

    @property
    def pooled(self) -> str:
        return self.pool or self.style.pool

    def setup(self) -> None:
        self.embed = nn.Embed(self.vocabulary or self.classes, self.width)
        biased = self.family != "clip" and self.pooled != "none"
        self.head = self.embed.attend if self.family == "gpt2" and self.pooled == "none" else nn.Dense(self.classes, biased)

    @nn.compact
    def features(self, x: jax.Array) -> jax.Array:
        """[B, T, D], or [B, D] where a position is pooled."""
        image, style = x.ndim == 4, self.style
        z = self._pictures(x) if image else self._texts(x)
        z = normed(style, self.eps, "norm_first")(z) if style.started or (image and self.family == "clip") else z
        causal, real = jnp.tri(z.shape[1], dtype=bool), jnp.ones(z.shape[:2], bool) if image else x != self.padding
        allowed = real[:, None, None, :] & (causal if style.causal and not image else jnp.ones_like(causal))
        for i in range(self.depth):
            sizes = (self.heads, self.kv_heads or self.heads, self.hidden or 4 * self.width)
            z = Layer(style, *sizes, self.theta, self.eps, name=f"blocks_{i}")(z, allowed)
        z = z if style.after else normed(style, self.eps, "norm")(z)
        z = _pooled("first" if image else self.pooled, z, x, real)
        return jnp.tanh(nn.Dense(self.width, name="pooler")(z)) if self.family == "bert" and self.pooled == "first" else z

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))

    def _texts(self, x: jax.Array) -> jax.Array:
        if x.shape[1] > self.length:
            raise ValueError(f"backbone: the text has {x.shape[1]} positions, length is {self.length}")
        z = self.embed(x)
        if self.style.rotary:
            return z
        return z + self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))[: x.shape[1]]

    def _pictures(self, x: jax.Array) -> jax.Array:
        z = nn.Dense(self.width, use_bias=self.family != "clip", name="patch")(patches(x, self.patch))
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, self.width))
        z = jnp.concatenate([jnp.broadcast_to(token, (z.shape[0], 1, self.width)).astype(z.dtype), z], 1)
        return z + self.param("positions", nn.initializers.normal(0.02), (z.shape[1], self.width))


class Layer(nn.Module):
    """One block of a Backbone: x + Attention(N(x)), then x + MLP(N(x)); in families with the norm after, N(x + Attention(x)) and so on."""

    style: Style
    heads: int
    kv_heads: int
    hidden: int
    theta: float
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        for name, part in (("norm_0", lambda y: self.attention(y, allowed)), ("norm_1", self.mlp)):
            norm = normed(self.style, self.eps, name)
            x = norm(x + part(x)) if self.style.after else x + part(norm(x))
        return x

    def dense(self, width: int, name: str) -> nn.Module:
        return nn.Dense(width, use_bias=not self.style.rotary, name=name)

    def mlp(self, x: jax.Array) -> jax.Array:
        up = self.dense(self.hidden, "up")(x)
        gated = self.style.activation == "swiglu"
        up = nn.silu(self.dense(self.hidden, "gate")(x)) * up if gated else ACTIVATIONS[self.style.activation](up)
        return self.dense(x.shape[-1], "down")(up)

    def attention(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        side = width // self.heads
        query = self.dense(width, "query")(x).reshape(batch, length, self.heads, side)
        key, value = (self.dense(self.kv_heads * side, name)(x).reshape(batch, length, self.kv_heads, side) for name in ("key", "value"))
        query, key = (turned(part, self.theta) for part in (query, key)) if self.style.rotary else (query, key)
        key, value = (jnp.repeat(part, self.heads // self.kv_heads, 2) for part in (key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * side**-0.5
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return self.dense(width, "out")(y.reshape(x.shape))


class CLIP(nn.Module):
    """Images [B, H, W, C] and texts [N, T] in, logits [B, N] out: the cosine of their projections times exp(logit_scale)."""

    vision: Backbone
    text: Backbone
    inputs = ("x", "text")

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        image, words = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (self.vision(x), self.text(text)))
        return jnp.exp(self.param("logit_scale", nn.initializers.constant(2.6592), ())) * image @ words.T


def turned(x: jax.Array, theta: float) -> jax.Array:
    """[B, T, H, d] with each pair (i, i + d / 2) turned by t theta^(-2 i / d) (Su et al., 2021)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None].astype(x.dtype), jnp.sin(angle)[:, None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _pooled(pool: str, z: jax.Array, x: jax.Array, real: jax.Array) -> jax.Array:
    if pool == "none":
        return z
    if pool == "mean":
        return (z * real[:, :, None]).sum(1) / jnp.maximum(real.sum(1), 1)[:, None]
    last = z.shape[1] - 1 - jnp.argmax(real[:, ::-1], 1)
    place = {"first": jnp.zeros_like(last), "last": last, "largest": x.argmax(-1) if x.ndim == 2 else last}[pool]
    return jnp.take_along_axis(z, place[:, None, None], 1)[:, 0]
