"""Schedule: the server asks a few clients at its own pace, and they answer with what they have."""
from __future__ import annotations

import itertools
from typing import Literal

import numpy as np

from fedjax_lab.events import Arrival, Fleet, Update, consumed, orders, reweighed, trainings
from fedjax_lab.registry import part
from fedjax_lab.spec import Positive

PAPER = "FAVANO: Federated AVeraging with Asynchronous NOdes"


@part(kind="schedule", family="schedules", paper=PAPER, year=2024)
def polling(fleet: Fleet, *, interval: Positive = 7.0, law: str = "geometric:0.5/0.0625",
           alpha: Literal["stochastic", "deterministic"] = "stochastic") -> list[Update]:
    """All clients train, up to their number of steps; every `interval` the server polls a cohort, drawn as in a synchronous round.

    Who is polled answers with the steps E done since it was last polled, none perhaps, and starts again with the new model. A factor is
    1 / alpha_i, which makes fast and slow clients count alike: over the run the mean of factor E is 1. P and mean are over the polls of
    this client in this run.

    Args:
      interval: between two polls.
      law: delays, LAW[:VALUE] joined by '+'; see fedjax_lab.events.
      alpha: stochastic is P(E > 0) E, deterministic the mean of E.
    """
    order, train = orders(fleet), trainings(fleet, law)
    ends: dict[int, tuple[int, np.ndarray]] = {}  # since when, and when its steps end; of who was polled before
    updates = []
    for version in range(fleet.rounds):
        now, arrivals = (version + 1) * interval, []
        for client in itertools.islice(order(version), fleet.cohort):
            base, steps = ends[client] if client in ends else (0, train(client))
            arrivals.append(Arrival(client, base, int(np.searchsorted(steps, now - base * interval, "right")),
                                    ends=fleet.seen(base * interval, steps)))
            ends[client] = version + 1, train(client)
        updates.append(Update(now, tuple(arrivals), training=fleet.clients))
    steps_of = {client: np.array([min(a.allowance, fleet.steps[client]) for a in found]) for client, found in consumed(updates).items()}

    def factor(arrival: Arrival) -> float:
        steps, own = steps_of[arrival.client], min(arrival.allowance, int(fleet.steps[arrival.client]))
        divisor = np.mean(steps > 0) * own if alpha == "stochastic" else np.mean(steps)
        return float(1 / divisor) if divisor else 0.0

    return reweighed(updates, factor)
