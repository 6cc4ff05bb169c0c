"""Schedule: the server starts some clients at its own pace, and updates whenever an upload comes."""
from __future__ import annotations

import heapq
import itertools
from typing import Annotated

from fedjax_lab.events import Arrival, Fleet, Update, balanced, flights, orders
from fedjax_lab.registry import part
from fedjax_lab.spec import NonNegative, Positive, Range

PAPER = "FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-Aware Model Update"


@part(kind="schedule", family="schedules", paper=PAPER, year=2024)
def triggered(fleet: Fleet, *, period: Positive = 0.2, law: str = "halfnormal", max_staleness: Annotated[int, Range(0)] | None = None,
              latency: NonNegative = 0.0) -> list[Update]:
    """Every `period` the cohort's number of idle clients starts with the current model, or all of them where they are fewer; every upload is
    an update of its own.

    The idle clients stand in the order of which a synchronous round draws its cohort. Nobody waits, and any number may be in training. Who
    is done in the moment of a start is there before it. A factor is one over the share of the updates that consume the client.

    Args:
      period: between two starts.
      law: delays, LAW[:VALUE] joined by '+'; see fedjax_lab.events.
      max_staleness: uploads whose model is more updates old than this are rejected, and counted; none by default.
      latency: what a training takes longer for its download in the middle, at whichever step that is.
    """
    order, flight, number = orders(fleet), flights(fleet, law), itertools.count()
    flying: list[tuple[float, int, Arrival]] = []
    updates: list[Update] = []
    busy, rejected, start = set(), 0, 0
    while len(updates) < fleet.rounds:
        if not flying or start * period < flying[0][0]:
            now, start = start * period, start + 1
            idle = (client for client in order(len(updates)) if client not in busy)
            for client in list(itertools.islice(idle, fleet.cohort)):
                end, ends = flight(client, now)
                heapq.heappush(flying, (end + latency, next(number), Arrival(client, len(updates), ends=ends)))
                busy.add(client)
            continue
        now, _, arrival = heapq.heappop(flying)
        busy.discard(arrival.client)
        if max_staleness is not None and len(updates) - arrival.base > max_staleness:
            rejected += 1
        else:
            updates.append(Update(now, (arrival,), rejected, 0, len(flying)))
    return balanced(updates)
