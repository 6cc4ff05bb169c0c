"""Graph networks on padded graphs.

One example is one graph: "x" [B, V, F] node features, "edges" int32 [B, E, 2] (sender, receiver), where a row with a negative
entry is padding, and "y" int32 [B, V] node labels, negative where a node is padding or not to be learned from. An undirected edge
is listed in both directions; self-loops are the models' own affair.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


def propagate(values: jax.Array, edges: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over the edges into a node of weight times the sender's value.

    values [B, V, D], edges [B, E, 2], weights [B, E] (0 for padding) -> [B, V, D].
    """

    def one(values, edges, weights):
        senders, receivers = jnp.maximum(edges, 0).T
        return jax.ops.segment_sum(values[senders] * weights[:, None], receivers, values.shape[0])

    return jax.vmap(one)(values, edges, weights)


def normalized(edges: jax.Array, nodes: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Weights of D^-1/2 (A + I) D^-1/2, D the degrees of A + I: those of the edges [B, E] and those of the self-loops [B, V]."""
    real = (edges >= 0).all(-1).astype(dtype)
    ones = jnp.ones((edges.shape[0], nodes, 1), dtype)
    scale = jax.lax.rsqrt(1 + propagate(ones, edges, real)[..., 0])
    ends = jnp.take_along_axis(scale[:, :, None], jnp.maximum(edges, 0), 1)
    return real * ends.prod(-1), scale ** 2


class GCN(nn.Module):
    """Graph convolutional network (Kipf and Welling, ICLR 2017): ReLU(S X W) per layer, S as in `normalized`. Logits [B, V, classes].

    Parameters as those of an MLP of these widths; Cora (1433 features) to 7 classes: 23,063.
    """

    classes: int = 7
    widths: tuple[int, ...] = (16,)
    dropout: float = 0.0

    inputs = ("x", "edges")

    def setup(self) -> None:
        self.body = [nn.Dense(width, use_bias=False) for width in self.widths]
        self.head = nn.Dense(self.classes)

    @nn.compact
    def features(self, x: jax.Array, edges: jax.Array, train: bool = False) -> jax.Array:
        weights, own = normalized(edges, x.shape[1], x.dtype)

        def smooth(values):
            return propagate(values, edges, weights) + own[:, :, None] * values

        for i, layer in enumerate(self.body):
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (layer.features,))
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(smooth(layer(x)) + bias))
        return smooth(x)

    def __call__(self, x: jax.Array, edges: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, edges, train))


class GraphSAGE(nn.Module):
    """GraphSAGE with the mean aggregator (Hamilton et al., NeurIPS 2017): ReLU(W [x, mean of neighbors]). Logits [B, V, classes].

    Per layer (2 in + 1) out parameters; Cora (1433 features) to 7 classes: 46,103. A node without neighbors has their mean 0.
    """

    classes: int = 7
    widths: tuple[int, ...] = (16,)
    dropout: float = 0.0

    inputs = ("x", "edges")

    def setup(self) -> None:
        self.own = [nn.Dense(width) for width in self.widths]
        self.neighbors = [nn.Dense(width, use_bias=False) for width in self.widths]
        self.head = nn.Dense(self.classes)

    @nn.compact
    def features(self, x: jax.Array, edges: jax.Array, train: bool = False) -> jax.Array:
        real = (edges >= 0).all(-1).astype(x.dtype)
        degree = propagate(jnp.ones_like(x[:, :, :1]), edges, real)

        def mean(values):
            return propagate(values, edges, real) / jnp.maximum(degree, 1)

        for own, neighbors in zip(self.own, self.neighbors):
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(own(x) + mean(neighbors(x))))
        return jnp.concatenate([x, mean(x)], -1)

    def __call__(self, x: jax.Array, edges: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, edges, train))
