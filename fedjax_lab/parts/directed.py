"""Client-level momentum: the cohort's last mean direction goes out with the model."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.parts.moving import moving, stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.types import Method, Tree


class Directed(NamedTuple):
    """params: the model x.  g: the mean direction of the last round, zero before the first."""

    params: Tree
    g: Tree


def mean_direction(change: Tree, steps: jax.Array, lr: Any) -> Tree:
    """(x - y) / (lr K) with change = y - x: the mean of all v of K steps y <- y - lr v; zero where no step was taken."""
    return tree.scale(-1 / (lr * jnp.maximum(steps, 1)), moving(change))


def directed(local: Callable, server_lr: Any, **more: Any) -> Method:
    """A Method whose clients receive {"model": x, "g": g} and upload {"model": y - x, "g": their mean direction}, and whose server does

    x <- x + server_lr mean(y - x)          g <- mean((x - y) / (lr K_i))

    The second field costs nothing: the server divides the change that it receives by the lr K_i that it knows.
    """
    def serve(key, server, aggregate, cohort):
        return Directed(stepped(server_lr, aggregate["model"], server.params), aggregate["g"])

    return stateful(local, serve, lambda x, people: Directed(x, tree.zeros_like(x)), sends=("g",), up={"g": known()}, **more)
