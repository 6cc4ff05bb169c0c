"""FLAG: the projection of normalized uploads onto the subspace that explains most of them.

Almasi, Mishra, Vamanan, Ravi, "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
Optimization", ICLR 2024.

    (1)  x_i = g_i / ||g_i||,  d_ij = x_i - x_j                                   n uploads present
    (2)  Y = argmin sum_i sqrt(1 - ||Y^T x_i||^2) + lam / (n (n-1)) sum_{i != j} sqrt(1 - ||Y^T d_ij||^2),  Y^T Y = I of r columns
    (3)  c_i^2 = (|1 - ||Y^T x_i||^2| + 1e-7)^{-1/2}, likewise c_ij^2 times lam / (n (n-1));  Y <- the top r left singular vectors of
         [c_i x_i, c_ij d_ij], `steps` times
    (4)  s sum_i w_i Y Y^T x_i,  s the median of ||g_i||;  or (1/r) sum_i Y Y^T x_i

Everything is computed from K = X^T X [n, n]: with S = K^{1/2} and X = Q S, the vectors of (3) are Q U for the top eigenvectors U of
S W S, where W holds the squared weights, and Y^T x_i = U^T S e_i.

Keeps: a rotation of all uploads rotates the result.
Reduces to: the mean of the normalized uploads for r = n.
Departs: (3) starts from equal weights, to which the code's random first subspace of a high dimension comes; pairs weigh by (2), where
the code multiplies their columns; and (4) brings the length of the uploads back, which the code leaves to the learning rate
(scale=code).
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_lab.parts.gram import combined, gram, norms, scaled, shares, there
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Range
from fedjax_lab.types import Stacked

PAPER = "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex Optimization"
TINY = 1e-6  # of the largest eigenvalue: what is below is no direction


@part(kind="aggregator", family="trust", paper=PAPER, year=2024)
def flag(rank: Annotated[int, Range(0)] = 0, *, lam: NonNegative = 0.0, steps: Count = 5, scale: Literal["norm", "code"] = "norm",
         weights: Literal["honored", "equal"] = "honored") -> Stacked:
    """The mean of normalized uploads, projected onto the subspace that explains most of them.

    Args:
      rank: columns of the subspace; 0 for half of those present and one, rounded up.
      lam: what the differences of uploads count.
      steps: of reweighting.
      scale: norm gives the result the median length of the uploads, code leaves them normalized and divides their sum by the rank.
      weights: of the uploads in the mean, honored or all equal; the subspace counts clients.
    """

    def rule(stack, weight, cohort):
        stack, present, w = there("flag", stack, weight, weights)
        size, n = norms(stack), jnp.sum(present)
        x = scaled(jnp.where(size > 0, 1 / jnp.maximum(size, jnp.finfo(jnp.float32).tiny), 0), stack)  # (1)
        r = rank or (n + 2) // 2
        root, inverse = roots(gram(x))
        u = subspace(root, present, r, lam, steps)
        by = shares(w) * _median(size, present) if scale == "norm" else present / r
        return combined(inverse @ (u @ (u.T @ (root @ by))), x)  # (4)

    return Stacked(rule, tolerates=lambda n: max((n - 1) // 2, 0))


def roots(k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The square root of a positive semidefinite matrix, and its pseudo-inverse."""
    values, vectors = jnp.linalg.eigh(k)
    there = values > TINY * jnp.max(values)
    root = jnp.sqrt(jnp.where(there, values, 0))
    return (vectors * root) @ vectors.T, (vectors * jnp.where(there, 1 / jnp.where(there, root, 1), 0)) @ vectors.T


def subspace(root: jax.Array, present: jax.Array, rank: jax.Array, lam: float, steps: int) -> jax.Array:
    """U [S, S] of (3): the top `rank` eigenvectors, zero columns for the others."""
    n = jnp.sum(present)
    pairs = present[:, None] & present[None] & ~jnp.eye(present.shape[0], dtype=bool)
    each = lam / jnp.maximum(n * (n - 1), 1)

    def top(one: jax.Array, two: jax.Array) -> jax.Array:
        laplacian = 2 * (jnp.diag(jnp.sum(two, 1)) - two)  # sum over ordered pairs of (e_i - e_j)(e_i - e_j)^T
        _, vectors = jnp.linalg.eigh(root @ (jnp.diag(one) + laplacian) @ root)
        return vectors * (jnp.arange(vectors.shape[0]) >= vectors.shape[0] - rank)

    def inverse_root(explained: jax.Array) -> jax.Array:
        return 1 / jnp.sqrt(jnp.abs(1 - explained) + 1e-7)

    def step(_, u):
        seen = u.T @ root  # Y^T x_i, by columns
        inner = seen.T @ seen
        between = jnp.diag(inner)[:, None] + jnp.diag(inner)[None] - 2 * inner
        return top(jnp.where(present, inverse_root(jnp.diag(inner)), 0), jnp.where(pairs, each * inverse_root(between), 0))

    first = top(present.astype(root.dtype), jnp.where(pairs, each, 0.0))
    return jax.lax.fori_loop(0, steps - 1, step, first)


def _median(values: jax.Array, present: jax.Array) -> jax.Array:
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(present, values, jnp.nan)))


__all__ = ["flag", "roots", "subspace"]
