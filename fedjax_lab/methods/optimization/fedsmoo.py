"""FedSMOO: dynamic regularization of the perturbation as well as of the model.

Sun, Shen, Chen, Ding, Tao, "Dynamic Regularized Sharpness Aware Minimization in Federated Learning", ICML 2023.

    (1)  s = rho (g1 - mu_i - s_bar) / ||g1 - mu_i - s_bar||       g1 = grad F(y; b)
    (2)  mu_i <- mu_i + s - s_bar                                  at every local step
    (3)  v = grad F(y + s; b) + lam (y - x^t) + lam h_i            the same batch;  y <- y - lr v, K_i steps from y = x^t
    (4)  h_i <- h_i + (y_i - x^t)                                  for i in S
    (5)  x^{t+1} = mean_S y_i + (1 / N) sum_j h_j                  with this round's h
    (6)  s_bar = rho mean_S mu_i / ||mean_S mu_i||

Keeps: h_i is the sum of i's own displacements; s and s_bar have length rho (s_bar is zero before the first round).
Reduces to: FedSpeed where mu_i and s_bar stay zero; FedDyn with rho = 0.
Departs: the whole bracket (3) can be clipped, as the released runs do at 10. A round in which nobody is heard leaves the server alone.
"""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, gradient
from fedjax_lab.parts import dual
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.moving import moving
from fedjax_lab.parts.oracles.directions import TINY, clipped, corrected, descend_with, proximal
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Dynamic Regularized Sharpness Aware Minimization in Federated Learning: Approaching Global Consistency and Smooth Landscape"


class Smoo(NamedTuple):
    """params, h, average as in parts/dual.  s: the consistent perturbation s_bar."""

    params: Tree
    h: Tree
    average: Tree
    s: Tree


class Row(NamedTuple):
    """A client's h_i and mu_i."""

    h: Tree
    mu: Tree


def _of_length(rho, v: Tree) -> Tree:
    return tree.scale(rho / (tree.norm(v) + TINY), v)


@method(family="optimization", paper=PAPER, year=2023, stateful=True)
def fedsmoo(task: Task, work: Work, *, rho: NonNegative = 0.1, lam: Positive = 0.1, clip: Positive = float("inf")) -> Method:
    """Sharpness-aware steps whose perturbations are made to agree across clients.

    Args:
      rho: length of the perturbation.
      lam: strength of the terms that hold the model, as in FedDyn.
      clip: largest norm of a local direction, inf for none.
    """

    def local(key, message, row, data):
        x, s_bar = message["model"], message["s"]

        def direction(key, y, mu, batch):
            loss, g1, stats = gradient(task)(key, y, batch)
            s = _of_length(rho, tree.sub(tree.sub(g1, mu), s_bar))  # (1)
            mu = tree.add(mu, tree.sub(s, s_bar))  # (2)

            def at(key, _, batch):
                return gradient(task)(key, tree.add(y, s), batch)

            held = clipped(proximal(corrected(at, tree.scale(lam, row.h)), lam, x), clip)  # (3)
            return loss, held(key, y, batch)[1], stats, mu

        y, mu, loss = descend_with(batches(key, data, work), x, row.mu, direction, work.optimizer)
        change = tree.sub(y, x)
        row = Row(tree.add(row.h, moving(change)), mu)  # (4)
        return Result({"model": change, "mu": mu}, weigh("uniform", data), row, metrics={"loss": loss})

    def serve(key, server, aggregate, cohort):
        new = dual.closed(dual.Dual(*server[:3]), aggregate["model"], cohort)  # (5)
        return Smoo(*new, tree.select(heard(cohort) > 0, _of_length(rho, aggregate["mu"]), server.s))  # (6)

    def server(x, people):
        return Smoo(*dual.opened(x), tree.zeros_like(x))

    return stateful(local, serve, server, lambda x: Row(tree.zeros_like(x), tree.zeros_like(x)), ("s",), steps=work.steps)
