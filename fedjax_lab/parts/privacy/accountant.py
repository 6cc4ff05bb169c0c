"""How much a run has told: epsilon at a given delta, by the accountant that fits how cohorts are drawn and where noise is added.

Fresh noise on every sum (dp-fedavg):
    poisson        Poisson sampling with rate q; neighbors differ by one client that is there or not
    uniform        cohorts of fixed size without replacement; neighbors differ by one client that is replaced, so that the sum moves by 2 C
    all clients    no sampling; neighbors as with poisson
Correlated noise (dp-ftrl), where rounds of a client must be known: cyclic or all clients; neighbors differ by a client whose changes are zero.
Noise at the clients (local-dp): any; neighbors are any two changes of one client.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from fedjax_lab import spec
from fedjax_lab.parts.cohorts.cyclic import cyclic
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
    if release.accountant == "none" or not release.noise:
        why = "no accountant" if release.noise else "no noise"
        return (lambda rounds: math.inf if rounds else 0.0), f"epsilon is infinite: {why}"
    event, relation, words = (_fresh if release.event is None else _apart)(release, participation, population)
    name = "rdp" if release.accountant == "auto" else release.accountant
    spent = functools.partial(_spent, name, relation, release.delta)
    return functools.cache(lambda rounds: spent(event(rounds)) if rounds else 0.0), f"epsilon at delta={release.delta:g} by {name.upper()}, {words}"


def _fresh(release: Release, participation: str, population: int) -> tuple[Callable[[int], Any], str, str]:
    """(rounds) -> event, neighbors and words, where every round's sum has noise of its own."""
    import dp_accounting as dp

    schemes = _schemes(participation)
    everybody = release.cohort == population and schemes == ["uniform"]
    if schemes not in (["poisson"], ["uniform"]) or (release.accountant == "pld" and schemes != ["poisson"] and not everybody):
        raise ValueError(f"--participation={participation}: no accountant of --privacy fits it; choose poisson"
                         + (", uniform" if release.accountant != "pld" else "") + ", or accountant=none")
    cohorts, relation = f"cohorts of {release.cohort:,} of {population:,} clients; neighbors differ by a client that is", "there or not"
    if everybody:
        one, words = dp.GaussianDpEvent(release.noise), "all clients in every round; neighbors differ by a client that is"
    elif schemes == ["poisson"]:
        one, words = dp.PoissonSampledDpEvent(release.cohort / population, dp.GaussianDpEvent(release.noise)), f"Poisson {cohorts}"
    else:
        one = dp.SampledWithoutReplacementDpEvent(population, release.cohort, dp.GaussianDpEvent(release.noise / 2))
        words, relation = f"uniform {cohorts}", "replaced"
    return lambda rounds: dp.SelfComposedDpEvent(one, rounds), relation, f"{words} {relation}"


def _apart(release: Release, participation: str, clients: int) -> tuple[Callable[[int], Any], str, str]:
    """The same where it matters how many rounds lie between two of a client."""
    schemes, (_, positional, values) = _schemes(participation), spec.parse(spec.chain(participation)[0])
    turns = schemes == ["cyclic"] and spec.bind(cyclic, positional, values)
    if turns is not False and not turns.get("shuffle"):
        apart, words = turns.get("groups") or -(-clients // release.cohort), "a client's turn comes every {} rounds"
    elif release.local or (schemes == ["uniform"] and release.cohort == clients):
        apart, words = 1, "a client is reckoned with in every round"
    else:
        raise ValueError(f"--participation={participation}: no accountant of --privacy fits it, since noise that later rounds take back needs clients "
                         "in fixed turns; choose cyclic without shuffle, uniform with all clients, or accountant=none")
    neighbors = "any two changes of one client" if release.local else "differ by a client whose changes are zero"
    return (lambda rounds: release.event(rounds, apart)), "there or not", f"{words.format(apart)}; neighbors {neighbors}"


def _schemes(participation: str) -> list[str]:
    return [spec.parse(item)[0] for item in spec.chain(participation)]


def _spent(name: str, relation: str, delta: float, event: Any) -> float:
    import dp_accounting as dp
    from dp_accounting import pld, rdp

    neighbors = dp.NeighboringRelation.REPLACE_ONE if relation == "replaced" else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = pld.PLDAccountant(neighbors) if name == "pld" else rdp.RdpAccountant(ORDERS, neighbors)
    return float(accountant.compose(event).get_epsilon(delta))


def bare(method: Method, fields: Sequence[str]) -> list[str]:
    """The fields of an upload that are released as they are."""
    return sorted(set(fields) - set(method.release.noised))


__all__ = ["bare", "epsilon"]
