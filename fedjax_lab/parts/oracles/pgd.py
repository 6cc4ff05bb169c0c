"""Inputs changed against a model: projected gradient ascent on each example's own loss, in a ball and a box.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.

    (1)  x' = x + U(-rho, rho), at first
    (2)  x' <- x' + a sign(g)  or  x' + a g / ||g||       g the gradient of the example's loss in x', of the model in evaluation
    (3)  x' <- x + Proj(x' - x), onto entries of at most rho, or onto a length of at most rho; then into the box

Training at x' treats it as a constant.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_lab.types import Batch, Key, Task, Tree

Norm = Literal["linf", "l2"]
Perturb = Callable[[Key, Tree, Batch], Batch]
"""(key, params, batch) -> the batch with other inputs."""


def perturbed(task: Task, *, rho: float, norm: Norm = "linf", steps: int = 7, step: float = 0.0, random: bool = True, low: float = 0.0,
              high: float = 1.0) -> Perturb:
    """Inputs near the given ones on which the model is worse; the given ones themselves with no step.

    Args:
      task: with inputs "x" [B, ...], float or uint8 pixels, which become float in [0, 1].
      rho: radius of the ball, in the units of the inputs.
      norm: of the ball.
      steps: of ascent.
      step: a; 0 for 2.5 rho / steps.
      random: start at a random place in the ball.
      low, high: of the box, -inf and inf for none.
    """
    rate = step or 2.5 * rho / max(steps, 1)

    def project(away: jax.Array) -> jax.Array:
        return jnp.clip(away, -rho, rho) if norm == "linf" else away * jnp.minimum(1, rho / jnp.maximum(_length(away), 1e-12))  # (3)

    def change(key: Key, params: Tree, batch: Batch) -> Batch:
        if not steps:
            return batch
        params, batch = jax.lax.stop_gradient((params, dict(batch)))
        x = batch["x"].astype(jnp.float32) / 255 if batch["x"].dtype == jnp.uint8 else batch["x"]

        def loss(near):
            seen = {**batch, "x": near}
            return jnp.sum(task.metrics(task.apply(params, seen), seen)["loss"])

        def turn(_, near):
            g = jax.grad(loss)(near)
            ascent = jnp.sign(g) if norm == "linf" else g / jnp.maximum(_length(g), 1e-12)
            return jnp.clip(x + project(near + rate * ascent - x), low, high)  # (2)

        first = jax.random.uniform(key, x.shape, x.dtype, -rho, rho) if random else jnp.zeros_like(x)  # (1)
        near = jax.lax.fori_loop(0, steps, turn, jnp.clip(x + project(first), low, high) if random else x)
        return {**batch, "x": jax.lax.stop_gradient(near)}

    return change


def _length(v: jax.Array) -> jax.Array:
    """[B, 1, ...]: the length of every example's vector."""
    return jnp.sqrt(jnp.sum(jnp.square(v), tuple(range(1, v.ndim)), keepdims=True))


def perturbable(name: str, example: Mapping[str, Any]) -> None:
    """Nothing, where examples have inputs "x" of real numbers or pixels.

    Raises:
      ValueError: there is nothing to change by a little.
    """
    kind = example["x"].dtype if "x" in example else None
    if kind is None or not (jnp.issubdtype(kind, jnp.floating) or kind == jnp.uint8):
        raise ValueError(f"'{name}' changes inputs 'x' by a little: they must be real numbers or pixels, and this task has "
                         + (f"'x' of {kind}" if kind is not None else f"only {', '.join(sorted(example))}"))


__all__ = ["Norm", "Perturb", "perturbable", "perturbed"]
