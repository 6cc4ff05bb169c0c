"""Duals of dynamic regularization: every client sums up its own displacements, and the server keeps their mean over all clients."""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.parts.clients import heard
from fedjax_lab.parts.moving import moving
from fedjax_lab.types import Cohort, Tree


class Dual(NamedTuple):
    """params: the model x.  h: the mean of h_j over all N clients.  average: the mean of the last cohort's local models."""

    params: Tree
    h: Tree
    average: Tree


def opened(params: Tree) -> Dual:
    """The state before the first round."""
    return Dual(params, tree.zeros_like(params), params)


def closed(server: Dual, change: Tree, cohort: Cohort) -> Dual:
    """h <- h + (1 / N) sum_S (y_i - x), x <- mean_S y_i + h with the new h, given change = mean_S (y_i - x); a round in which nobody was
    heard changes nothing."""
    count = heard(cohort)
    h = tree.axpy(count / cohort.clients, moving(change), server.h)
    average = tree.add(server.params, change)
    return tree.select(count > 0, Dual(tree.add(average, h), h, average), server)
