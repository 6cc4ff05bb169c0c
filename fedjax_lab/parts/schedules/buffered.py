"""Schedule: uploads come one by one, and the server updates whenever a buffer of them is full."""
from __future__ import annotations

import heapq
import itertools
from typing import Annotated

from fedjax_lab.events import Arrival, Fleet, Update, balanced, flights, orders
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, Range

PAPER = "Federated Learning with Buffered Asynchronous Aggregation"


@part(kind="schedule", family="schedules", paper=PAPER, year=2022)
def buffered(fleet: Fleet, *, buffer: Count = 10, law: str = "halfnormal", max_staleness: Annotated[int, Range(0)] | None = None) -> list[Update]:
    """The cohort's number of clients is always in training; who is done is replaced at once by a random idle one.

    A replacement downloads the current model, and the idle clients stand in the order of which a synchronous round with that number draws
    its cohort. A client whose upload lies in the buffer rests until it is emptied. Uploads of one moment are all consumed before anybody is
    replaced, so equal delays with a buffer as large as the cohort are synchronous rounds. With a buffer of 1 it is the schedule of FedAsync;
    with all clients in the cohort those who were consumed start again, as in FedFix's Async and FedBuff.

    A factor is one over the share of the updates that consume the client.

    Args:
      buffer: how many uploads make an update.
      law: delays, LAW[:VALUE] joined by '+'; see fedjax_lab.events.
      max_staleness: uploads whose model is more updates old than this are rejected, and counted; none by default.
    """
    if buffer > fleet.clients:
        raise ValueError(f"option 'buffer' of 'buffered': {buffer} is more than the {fleet.clients} clients there are")
    clients, cohort, rounds = fleet.clients, fleet.cohort, fleet.rounds
    order, flight, number = orders(fleet), flights(fleet, law), itertools.count()
    updates: list[Update] = []
    flying: list[tuple[float, int, Arrival]] = []
    busy, waiting, rejected, now = set(), [], 0, 0.0
    version, idle = -1, iter(())
    while True:
        if version != len(updates):
            version = len(updates)
            idle = (client for client in order(version) if client not in busy)  # who is passed over stays busy until the next version
        for client in itertools.islice(idle, min(cohort - len(flying), clients - len(busy))):
            end, ends = flight(client, now)
            heapq.heappush(flying, (end, next(number), Arrival(client, version, ends=ends)))
            busy.add(client)
        now, moment = flying[0][0], len(updates)
        while flying and flying[0][0] == now:
            arrival = heapq.heappop(flying)[2]
            if max_staleness is not None and len(updates) - arrival.base > max_staleness:
                busy.discard(arrival.client)
                rejected, version = rejected + 1, -1
                continue
            waiting.append(arrival)
            if len(waiting) >= buffer and len(updates) < rounds:
                updates.append(Update(now, tuple(waiting)))
                busy -= {a.client for a in waiting}
                waiting = []
        for at in range(moment, len(updates)):
            later = sum(len(u.arrivals) for u in updates[at + 1 :])
            updates[at] = Update(*updates[at][:2], rejected, later + len(waiting), len(flying))
        if len(updates) == rounds:
            break
    return balanced(updates)
