"""Client losses that are quadratic in the parameters, such as linear regression, in closed form."""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_lab.types import ClientData, Key, Task, Tree


class Quadratic(NamedTuple):
    """F(w) = 1/2 w^T hessian w - linear^T w + const, for flat parameters w: hessian [d, d] and linear [d]."""

    hessian: jax.Array
    linear: jax.Array

    def proximal(self, scale: jax.Array | float, rho: float, v: jax.Array) -> jax.Array:
        """The minimum [d] of scale F(w) - v^T w + (rho / 2) ||w||^2."""
        return jnp.linalg.solve(scale * self.hessian + rho * jnp.eye(v.size, dtype=v.dtype), scale * self.linear + v)

    def pull(self, scale: jax.Array | float, rho: float) -> jax.Array:
        """rho (scale hessian + rho I)^-1 [d, d]: what that minimum moves by when v moves by rho times a vector."""
        one = jnp.eye(self.linear.size, dtype=self.linear.dtype)
        return rho * jnp.linalg.inv(scale * self.hessian + rho * one)


def quadratic(name: str, key: Key, task: Task, params: Tree, data: ClientData) -> Quadratic:
    """The task's loss over all of the client's training examples; zero without examples.

    Args:
      name: of the method that asks, for the message.
      key, task, data: the client's.
      params: of the task, for their structure only.

    Raises:
      ValueError: while tracing, if the loss is not quadratic in the parameters.
    """
    flat, unravel = ravel_pytree(params)
    batch = data.train.whole()
    slope = jax.grad(lambda w: task.loss(unravel(w), batch, key)[0])
    try:
        jax.eval_shape(jax.linear_transpose(slope, flat), flat)
    except (NotImplementedError, AssertionError, TypeError, ValueError):  # what jax makes of a slope that is not affine in w
        raise ValueError(f"'{name}' solves for its clients' models in closed form: it needs a loss that is quadratic in the parameters, "
                         f"as that of linear regression; task '{task.name}' has another") from None
    origin = jnp.zeros_like(flat)
    return Quadratic(jax.jacfwd(slope)(origin), -slope(origin))
