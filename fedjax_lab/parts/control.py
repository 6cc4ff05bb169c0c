"""Control variates: what SCAFFOLD's server and clients remember, and how it is refreshed."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import rules, tree
from fedjax_lab.parts.moving import moving, stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.types import Method, Tree


class Control(NamedTuple):
    """params: the model x.  c: the server's control variate, the mean of the clients' c_i over all N."""

    params: Tree
    c: Tree


def mean_gradient(c_i: Tree, c: Tree, change: Tree, steps: jax.Array, lr: Any) -> Tree:
    """c_i - c + (x - y) / (K lr), with change = y - x: the mean of the raw gradients of K steps of SGD along grad - c_i + c; c_i
    itself where no step was taken."""
    share = 1 / (lr * jnp.maximum(steps, 1))
    fresh = moving(jax.tree.map(lambda c_i, c, u: c_i - c - share * u, c_i, c, change))
    return tree.select(steps > 0, fresh, c_i)


def controlled(local: Callable, server_lr: Any, **more: Any) -> Method:
    """A Method whose clients keep c_i and upload {"model": y - x, "c": c_i' - c_i}, and whose server does

    x <- x + server_lr mean(y - x)          c <- c + (1 / N) sum(c_i' - c_i)
    """

    def serve(key, server, aggregate, cohort):
        c = tree.axpy(1 / cohort.clients, aggregate["c"], server.c)
        return Control(stepped(server_lr, aggregate["model"], server.params), c)

    def server(x, people):
        return Control(x, tree.zeros_like(x))

    return stateful(local, serve, server, tree.zeros_like, ("c",), aggregate={"c": rules.total()}, **more)
