"""Which hidden units of several networks are the same: MAP inference in a Beta-Bernoulli process with Gaussian atoms.

Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019. Runs on the host.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Prior(NamedTuple):
    """Units are N(atom, sigma) and atoms N(mean [D], sigma0), variances both; gamma: how readily new atoms come."""

    gamma: jax.Array | float
    sigma: jax.Array | float
    sigma0: jax.Array | float
    mean: jax.Array | np.ndarray


def matched(units: jax.Array, there: jax.Array, order: jax.Array, limit: int, prior: Prior, sweeps: int) -> tuple[jax.Array, jax.Array]:
    """Atoms [limit, D], zeros beyond those there are, and which of them each unit is, int32 [J, L].

    Args:
      units: [J, L, D], of J networks;  there: bool [J], which of them count.
      order: [J], networks are matched by it, the first one as it is.
      limit: the most atoms, at least L.
      prior, sweeps: the model, and how often every network is taken out and matched again.
    """

    def solve(units, there, order, prior):
        units, there, order = map(np.asarray, (units, there, order))
        found = np.zeros((limit, units.shape[2]), units.dtype), np.zeros(units.shape[:2], np.int32)
        chosen = np.argsort(order, kind="stable")
        chosen = chosen[there[chosen] & np.isfinite(units[chosen]).all((1, 2))]  # what is not finite has no assignment
        if len(chosen):
            atoms, found[1][chosen] = match(units[chosen].astype(np.float64), limit, Prior(*(np.asarray(x, np.float64) for x in prior)), sweeps)
            found[0][: len(atoms)] = atoms
        return found

    shapes = jax.ShapeDtypeStruct((limit, units.shape[2]), units.dtype), jax.ShapeDtypeStruct(units.shape[:2], jnp.int32)
    return jax.pure_callback(solve, shapes, units, there, order, Prior(*map(jnp.asarray, prior)), vmap_method="sequential")


def match(units: np.ndarray, limit: int, prior: Prior, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms [A, D], A <= limit, and the atom of each unit [J, L]."""
    from scipy.optimize import linear_sum_assignment

    count, size = units.shape[:2]
    place = np.full((count, size), -1)
    place[0] = np.arange(size)
    for j in [*range(1, count), *list(range(count)) * sweeps]:
        place[j] = -1
        used, place[place >= 0] = np.unique(place[place >= 0], return_inverse=True)  # atoms of nobody are gone
        total, number = _sums(units, place, len(used))
        score = np.concatenate([_old(units[j], total, number, count, prior), _new(units[j], min(size, limit - len(used)), count, prior)], 1)
        rows, columns = linear_sum_assignment(score, maximize=True)
        fresh = columns >= len(used)
        columns[fresh] = len(used) + np.argsort(np.argsort(columns[fresh]))
        place[j, rows] = columns
    total, number = _sums(units, place, place.max() + 1)
    return (prior.mean / prior.sigma0 + total / prior.sigma) / (1 / prior.sigma0 + number / prior.sigma)[:, None], place


def _sums(units: np.ndarray, place: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum [A, D] and number [A] of the units of every atom."""
    total = np.zeros((atoms, units.shape[2]))
    np.add.at(total, place[place >= 0], units[place >= 0])
    return total, np.bincount(place[place >= 0], minlength=atoms)


def _old(v: np.ndarray, total: np.ndarray, number: np.ndarray, count: int, prior: Prior) -> np.ndarray:
    """[L, A]: the gain of giving unit l to atom i."""
    G, precision = prior.mean / prior.sigma0 + total / prior.sigma, (1 / prior.sigma0 + number / prior.sigma)
    after = ((v[:, None] / prior.sigma + G) ** 2).sum(-1) / (precision + 1 / prior.sigma)
    return after - (G**2).sum(-1) / precision + np.log(np.minimum(number, 10) / (count - number))


def _new(v: np.ndarray, room: int, count: int, prior: Prior) -> np.ndarray:
    """[L, room]: the gain of giving unit l to the r-th new atom."""
    G = prior.mean / prior.sigma0
    gain = ((v / prior.sigma + G) ** 2).sum(-1) / (1 / prior.sigma + 1 / prior.sigma0) - (G**2).sum() * prior.sigma0
    return gain[:, None] - 2 * np.log(np.arange(1, room + 1)) + 2 * np.log(prior.gamma / count)
