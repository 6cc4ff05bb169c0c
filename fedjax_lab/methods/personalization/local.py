"""Local-only training: the clients of FedAvg (McMahan et al., AISTATS 2017) by themselves, the yardstick of personalization.

    (1)  y_i <- y_i - lr grad F_i(y_i; b)     in every round, by all clients or by the sampled ones, from the client's last y_i

Keeps: nothing is sent; with who = all a client's path depends on its own data and on the rounds alone, not on who is sampled.
Reduces to: FedAvg with one client.
Departs: all start from one initialization; the optimizer's state is fresh in every round, as in the methods beside it. The
global model that is evaluated is the initialization, since there is none.
"""
from __future__ import annotations

from typing import Literal

from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import owned
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Phase, Result, Task

ALONE = "nothing is sent"


@method(family="personalization", paper="Communication-Efficient Learning of Deep Networks from Decentralized Data", year=2017, stateful=True, several=True,
        refuses={"wire_up": ALONE, "wire_down": ALONE, "aggregator": ALONE, "server": ALONE})
def local(task: Task, work: Work, *, who: Literal["all", "sampled"] = "all") -> Method:
    """Every client trains a model of its own on its own data; nothing is sent.

    Args:
      who: all clients train in every round, or only those that are sampled.
    """

    def alone(key, message, y, data):
        end = descend(batches(key, data, work), y, gradient(task), work.optimizer)  # (1)
        return Result({}, 1.0, end.params, metrics={"loss": end.loss})

    phase = Phase(alone, lambda server, client, clock: {}, {}, {}, {}, lambda key, server, aggregate, cohort: server, everyone=who == "all")
    return Method(phases=(phase,), init_client=lambda key, params, facts: owned(task, params, facts.id), steps=work.steps,
                  personal=lambda key, server, y, data: y)
