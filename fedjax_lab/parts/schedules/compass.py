"""Schedule: clients of different speed get different numbers of steps, so that groups of them are done together."""
from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from fedjax_lab.events import Arrival, Fleet, Update, count_of, trainings
from fedjax_lab.registry import part
from fedjax_lab.spec import Range, Share

PAPER = "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing Power-Aware Scheduler"


class Group(NamedTuple):
    """members: clients, who arrive at about `due` and are waited for until `latest`;  here: the arrivals of some of them."""

    members: set[int]
    here: list[Arrival]
    due: float
    latest: float


@part(kind="schedule", family="schedules", paper=PAPER, year=2024)
def compass(fleet: Fleet, *, law: str = "exponential", least: Share = 0.2, memory: Share = 0.9, patience: Annotated[float, Range(1)] = 1.2) -> list[Update]:
    """All clients train, first with all their steps and then with as many as let them arrive with a group of others.

    A client's first upload is consumed alone. A group's are consumed together, when all its members are there or `patience` times the
    time is over in which they were expected; who comes later starts again at once, and is consumed with the next group, or at once where
    nothing was consumed since it started. Where one client would be in an update twice, one of its uploads makes an update of its own.

    Args:
      law: delays of whole trainings, LAW[:VALUE] joined by '+'; see fedjax_lab.events. Fewer steps take as much less time.
      least: fewest steps of a client, as a share of the most.
      memory: how much of a newly measured speed counts.
      patience: how many times the expected time a group is waited for; 1.2 in the paper, 1.5 in its code.
    """
    if fleet.cohort != fleet.clients:
        raise ValueError(f"'compass' has all clients in training: choose --cohort={fleet.clients}, not {fleet.cohort}")
    most = max(1, int(fleet.steps.max()))
    fewest, train, number = max(1, round(least * most)), trainings(fleet, law), itertools.count()
    events: list[tuple[float, bool, int, int]] = []  # time, whether a group's patience ends, order, client or group
    groups: dict[int, Group] = {}
    joined, speed, flying, began = {}, {}, {}, {}
    late: list[Arrival] = []
    updates: list[Update] = []

    def start(client: int, now: float, steps: int) -> None:
        took = float(train(client)[-1]) / count_of(fleet, client)
        flying[client], began[client] = Arrival(client, len(updates), steps, ends=fleet.seen(now, took * np.arange(1, steps + 1))), now
        heapq.heappush(events, (now + steps * took, False, next(number), client))

    def assign(client: int, now: float) -> None:
        s = speed[client]
        fitting = {g: q for g, group in groups.items() if fewest <= (q := _floor((group.due - now) / s)) <= most}
        if fitting:
            joined[client] = max(fitting, key=fitting.get)
            groups[joined[client]].members.add(client)
            return start(client, now, fitting[joined[client]])
        after = [_floor((g.latest + most * min(speed[i] for i in g.members) - now) / s) for g in groups.values() if now < g.latest]
        steps = max(fewest, max((q for q in after if q <= most), default=most))
        joined[client] = g = next(number)
        groups[g] = Group({client}, [], now + steps * s, now + patience * steps * s)
        heapq.heappush(events, (groups[g].latest, True, g, g))
        return start(client, now, steps)

    def consume(now: float, arrivals: Sequence[Arrival]) -> None:
        left = len(arrivals)
        for layer in _layers(arrivals):
            left -= len(layer)
            waiting = left + sum(len(g.here) for g in groups.values()) + len(late)
            updates.append(Update(now, tuple(layer), waiting=waiting, training=len(flying)))

    def close(g: int, now: float) -> None:
        group = groups.pop(g)
        together, late[:] = group.here + late, []
        consume(now, together)
        for arrival in sorted(group.here, key=lambda a: (speed[a.client], a.client)):
            assign(arrival.client, now)

    for client in range(fleet.clients):
        start(client, 0.0, most)
    while len(updates) < fleet.rounds:
        now, ends, _, who = heapq.heappop(events)
        if ends:
            if who in groups:
                close(who, now)
            continue
        arrival = flying.pop(who)
        measured = (now - began[who]) / arrival.allowance
        speed[who] = (1 - memory) * speed[who] + memory * measured if who in speed else measured
        group = groups.get(joined.get(who))
        if group is not None:
            group.here.append(arrival)
            if len(group.here) == len(group.members):
                close(joined[who], now)
            continue
        if who in joined:
            late.append(arrival)
            if arrival.base == len(updates):  # it would start a second time from the same model
                consume(now, late)
                late.clear()
        else:
            consume(now, [arrival])
        assign(who, now)
    return updates[: fleet.rounds]


def _floor(x: float) -> int:
    """What is a whole number but for rounding stays one."""
    return math.floor(x + 1e-9)


def _layers(arrivals: Sequence[Arrival]) -> Iterator[list[Arrival]]:
    """The arrivals, in lists of distinct clients."""
    left = list(arrivals)
    while left:
        first = {a.client: a for a in reversed(left)}
        yield list(first.values())
        left = [a for a in left if first[a.client] is not a]
