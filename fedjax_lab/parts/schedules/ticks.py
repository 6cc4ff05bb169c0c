"""Schedule: the server updates at fixed moments, with whatever has come since the last."""
from __future__ import annotations

import heapq
import math

import numpy as np

from fedjax_lab.events import Arrival, Fleet, Update, trainings
from fedjax_lab.registry import part
from fedjax_lab.spec import Positive

PAPER = "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates"


@part(kind="schedule", family="schedules", paper=PAPER, year=2023)
def ticks(fleet: Fleet, *, dt: Positive = 0.5, law: str = "linear:80") -> list[Update]:
    """All clients train; at the first tick after one is done it is consumed and starts again with that tick's model.

    A factor is the number of ticks that the client took, so that every client counts alike over time. An update may consume nothing.

    Args:
      dt: between two ticks.
      law: delays, LAW[:VALUE] joined by '+'; see fedjax_lab.events.
    """
    if fleet.cohort != fleet.clients:
        raise ValueError(f"'ticks' has all clients in training: choose --cohort={fleet.clients}, not {fleet.cohort}")
    train = trainings(fleet, law)

    def started(client: int, tick: int) -> tuple[int, int, int, np.ndarray | None]:
        ends = train(client)
        needed = max(1, math.ceil(round(float(ends[-1]) / dt, 9)))  # what takes a whole number of ticks is there in time
        return tick + needed, client, tick, fleet.seen(tick * dt, ends)

    flying = [started(client, 0) for client in range(fleet.clients)]
    heapq.heapify(flying)
    updates = []
    for tick in range(1, fleet.rounds + 1):
        arrivals = []
        while flying[0][0] == tick:
            _, client, base, ends = flying[0]
            arrivals.append(Arrival(client, base, factor=float(tick - base), ends=ends))
            heapq.heapreplace(flying, started(client, tick))
        updates.append(Update(tick * dt, tuple(arrivals), training=fleet.clients - len(arrivals)))
    return updates
