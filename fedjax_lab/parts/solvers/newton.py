"""Newton's method with a line search over halvings, for few unknowns."""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

SHARES = (*(0.5**k for k in range(8)), 0.0)  # of a step; the last keeps a point that no step improves
ROUNDING = 8  # units in the last place by which a value may be off


def newton(f: Callable[[jax.Array], jax.Array], x: jax.Array, steps: int) -> jax.Array:
    """A minimum [d] of f: [d] -> scalar, from x, whose value grows by no more than rounding; exact after one step where f is quadratic.
    Of steps as good as the best up to rounding the longest is taken."""
    slope, curvature = jax.grad(f), jax.hessian(f)

    def step(_, x):
        tried = x - jnp.asarray(SHARES, x.dtype)[:, None] * jnp.linalg.solve(curvature(x), slope(x))
        tried = tried.at[-1].set(x)
        value = jax.vmap(f)(tried)
        value = jnp.where(jnp.isfinite(value), value, jnp.inf)
        best = jnp.min(value)
        return tried[jnp.argmax(value <= best + ROUNDING * jnp.finfo(x.dtype).eps * jnp.abs(best))]

    return jax.lax.fori_loop(0, steps, step, x)


def median(points: jax.Array, weight: jax.Array, steps: int = 64) -> jax.Array:
    """The point [d] with the least weighted sum of distances to points [K, d], by Weiszfeld's steps from their mean; zero without weight."""

    def mean(w):
        return w @ points / jnp.maximum(w.sum(), 1e-30)

    def step(_, x):
        return mean(weight / jnp.maximum(jnp.linalg.norm(points - x, axis=1), 1e-9))

    return jax.lax.fori_loop(0, steps, step, mean(weight))
