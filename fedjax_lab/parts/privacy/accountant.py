"""How much a run has told: epsilon at a given delta, by the accountant that fits how cohorts are drawn.

    poisson        Poisson sampling with rate q; neighbors differ by one client that is there or not
    uniform        cohorts of fixed size without replacement; neighbors differ by one client that is replaced, so that the sum moves by 2 C
    all clients    no sampling; neighbors as with poisson
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from fedjax_lab import spec
from fedjax_lab.types import Method, Release

ORDERS = tuple(range(2, 257))


def epsilon(release: Release, participation: str, clients: int) -> tuple[Callable[[int], float], str]:
    """(rounds) -> epsilon, and in words what it rests on.

    Args:
      release: of the method.
      participation: as --participation has it.
      clients: N of the run.

    Raises:
      ValueError: the accountant does not fit the participation.
    """
    population = release.population or clients
    if release.cohort > population:
        raise ValueError(f"--privacy: a noise of {release.cohort} clients in a round needs population={release.cohort} or more; it is {population}")
    schemes = [spec.parse(item)[0] for item in spec.chain(participation)]
    everybody = release.cohort == population and schemes == ["uniform"]
    if release.accountant == "none" or not release.noise:
        why = "no accountant" if release.noise else "no noise"
        return (lambda rounds: math.inf if rounds else 0.0), f"epsilon is infinite: {why}"
    if schemes not in (["poisson"], ["uniform"]) or (release.accountant == "pld" and schemes != ["poisson"] and not everybody):
        raise ValueError(f"--participation={participation}: no accountant of --privacy fits it; choose poisson"
                         + (", uniform" if release.accountant != "pld" else "") + ", or accountant=none")
    kind = "none" if everybody else schemes[0]
    name = "rdp" if release.accountant == "auto" else release.accountant
    words = {"none": "all clients in every round; neighbors differ by a client that is there or not",
             "poisson": f"Poisson cohorts of {release.cohort:,} of {population:,} clients; neighbors differ by a client that is there or not",
             "uniform": f"uniform cohorts of {release.cohort:,} of {population:,} clients; neighbors differ by a client that is replaced"}[kind]
    spent = functools.partial(_spent, name, kind, release.noise, release.delta, release.cohort, population)
    return functools.cache(lambda rounds: spent(rounds) if rounds else 0.0), f"epsilon at delta={release.delta:g} by {name.upper()}, {words}"


def _spent(name: str, kind: str, noise: float, delta: float, cohort: int, population: int, rounds: int) -> float:
    import dp_accounting as dp
    from dp_accounting import pld, rdp

    event = dp.GaussianDpEvent(noise / 2 if kind == "uniform" else noise)
    relation = dp.NeighboringRelation.REPLACE_ONE if kind == "uniform" else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if kind == "poisson":
        event = dp.PoissonSampledDpEvent(cohort / population, event)
    elif kind == "uniform":
        event = dp.SampledWithoutReplacementDpEvent(population, cohort, event)
    accountant = pld.PLDAccountant(relation) if name == "pld" else rdp.RdpAccountant(ORDERS, relation)
    return float(accountant.compose(event, rounds).get_epsilon(delta))


def bare(method: Method, fields: Sequence[str]) -> list[str]:
    """The fields of an upload that are released as they are."""
    return sorted(set(fields) - set(method.release.noised))


__all__ = ["bare", "epsilon"]
