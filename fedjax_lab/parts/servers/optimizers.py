"""Server optimizers: what the server does with the mean change u of the clients' models.

    sgd       x <- x + lr u
    momentum  m <- beta m + u              x <- x + lr m                      heavy ball
              m <- beta m + (1 - beta) u   x <- x + lr m                      ema
    adagrad   m <- beta1 m + (1 - beta1) u   v <- v + u^2                               x <- x + lr m / (sqrt(v) + tau)
    adam      m as above                     v <- beta2 v + (1 - beta2) u^2             x as above
    yogi      m as above                     v <- v - (1 - beta2) u^2 sign(v - u^2)     x as above

The adaptive ones are those of Reddi et al. (ICLR 2021): m_0 = 0, v_0 = tau^2, no bias correction, tau outside the root. A server
optimizer never sees normalization statistics: those take the mean change as it is (`advance`).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.registry import part
from fedjax_lab.spec import Positive, Share
from fedjax_lab.types import Tree

ADAPTIVE = {"kind": "server", "family": "optimization", "paper": "Adaptive Federated Optimization", "year": 2021}


class Server(NamedTuple):
    """init: (params) -> state.  step: (state, u) -> (state, what is added to the model)."""

    init: Callable[[Tree], Tree]
    step: Callable[[Tree, Tree], tuple[Tree, Tree]]


class Momentum(NamedTuple):
    m: Tree


class Moments(NamedTuple):
    m: Tree
    v: Tree


def advance(server: Server, state: Tree, params: Tree, u: Tree) -> tuple[Tree, Tree]:
    """(state, params) after one step; leaves without gradient move by u itself."""
    state, step = server.step(state, u)
    return state, jax.tree.map(lambda moves, x, s, u: (x + (s if moves else u)).astype(x.dtype), tree.trainable(params), params, step, u)


@part(kind="server", family="optimization", paper="Communication-Efficient Learning of Deep Networks from Decentralized Data", year=2017)
def sgd(*, lr: Positive = 1.0) -> Server:
    """The mean change times a rate.

    Args:
      lr: the rate; 1 is the mean of the clients' models.
    """
    return Server(lambda params: (), lambda state, u: (state, tree.scale(lr, u)))


@part(kind="server", family="optimization", year=2019,
      paper="Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification")
def momentum(*, lr: Positive = 1.0, beta: Share = 0.9, form: Literal["heavy_ball", "ema"] = "heavy_ball", nesterov: bool = False) -> Server:
    """Momentum at the server.

    Args:
      lr: server learning rate.
      beta: share of the old momentum that stays.
      form: heavy_ball m <- beta m + u, or ema m <- beta m + (1 - beta) u, which is smaller by 1 - beta.
      nesterov: step along beta m + u (ema: beta m + (1 - beta) u) with the new m.
    """
    new = 1 - beta if form == "ema" else 1.0

    def step(state, u):
        m = jax.tree.map(lambda m, u: beta * m + new * u, state.m, u)
        return Momentum(m), tree.scale(lr, jax.tree.map(lambda m, u: beta * m + new * u, m, u) if nesterov else m)

    return Server(lambda params: Momentum(tree.zeros_like(params)), step)


def _adaptive(second: Callable, lr, beta1, tau) -> Server:
    """The shape all three share; `second(v, u^2)` is what tells them apart."""

    def init(params):
        return Moments(tree.zeros_like(params), jax.tree.map(lambda x: jnp.full(x.shape, tau**2, x.dtype), params))

    def step(state, u):
        m = jax.tree.map(lambda m, u: beta1 * m + (1 - beta1) * u, state.m, u)
        v = jax.tree.map(lambda v, u: second(v, u * u), state.v, u)
        return Moments(m, v), jax.tree.map(lambda m, v: lr * m / (jnp.sqrt(v) + tau), m, v)

    return Server(init, step)


@part(**ADAPTIVE)
def adagrad(*, lr: Positive = 0.1, beta1: Share = 0.0, tau: Positive = 1e-3) -> Server:
    """Adagrad at the server.

    Args:
      lr: server learning rate.
      beta1: share of the old first moment that stays.
      tau: degree of adaptivity, added to the root of the second moment; small is more adaptive.
    """
    return _adaptive(lambda v, square: v + square, lr, beta1, tau)


@part(**ADAPTIVE)
def adam(*, lr: Positive = 0.1, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3) -> Server:
    """Adam at the server.

    Args:
      lr: server learning rate.
      beta1, beta2: shares of the old first and second moment that stay.
      tau: degree of adaptivity, added to the root of the second moment; small is more adaptive.
    """
    return _adaptive(lambda v, square: beta2 * v + (1 - beta2) * square, lr, beta1, tau)


@part(**ADAPTIVE)
def yogi(*, lr: Positive = 0.1, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3) -> Server:
    """Yogi at the server.

    Args:
      lr: server learning rate.
      beta1, beta2: shares of the old first and second moment that stay.
      tau: degree of adaptivity, added to the root of the second moment; small is more adaptive.
    """
    return _adaptive(lambda v, square: v - (1 - beta2) * square * jnp.sign(v - square), lr, beta1, tau)
