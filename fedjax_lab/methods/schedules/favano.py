"""FAVANO: clients never stop, and answer with what they have when they are asked.

Leconte, Jhunjhunwala, Le Boudec, Moulines, "FAVANO: Federated AVeraging with Asynchronous NOdes", ICASSP 2024, Algorithm 1.

    (1)  w_i <- w_i - lr grad F_i(w_i; b)           up to K steps, from w_i = a_i, the model that i was sent when last polled
    (2)  u_i = a_i + (w_i - a_i) / alpha_i            of the polled, with the E_i steps they have done; u_i = a_i where E_i = 0
    (3)  w_t = (w_{t-1} + sum_{S_t} u_i) / (|S_t| + 1)  the polled receive w_t

Keeps: who is not polled goes on undisturbed; with one gradient g everywhere the mean of u_i - a_i is -lr g, for fast and slow clients alike.
Reduces to: the mean of all w_i and w_{t-1} with alpha_i = 1 and all clients polled.
Departs: 1 / alpha_i is the schedule's factor (--schedule=polling:alpha=stochastic|deterministic), since it follows from the clock
alone. Polled clients without examples do not count.
"""
from __future__ import annotations

import jax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Task

PAPER = "FAVANO: Federated AVeraging with Asynchronous NOdes"


@method(family="schedules", paper=PAPER, year=2024, schedule="polling:7", local_steps=20)
def favano(task: Task, work: Work) -> Method:
    """Polled clients send the steps they have done, scaled so that fast and slow ones count alike."""

    def local(key, message, client, data):
        a = message["model"]
        y = descend(batches(key, data, work), a, gradient(task), work.optimizer)  # (1)
        change = tree.scale(data.factor, tree.sub(y.params, a))  # (2)
        return weighted({"model": change, "start": a}, weigh("uniform", data), metrics={"loss": y.loss})

    def serve(key, w, aggregate, cohort):
        share = shared(aggregate, heard(cohort) + 1)
        return jax.tree.map(lambda w, a, u: w + share * ((a - w) + u), w, aggregate["start"], aggregate["model"])  # (3)

    return summed(local, "start", serve=serve, steps=work.steps)
