"""The averages: the weighted mean and the total of fedjax_lab.rules under their names, and the majority vote."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import rules, tree
from fedjax_lab.registry import part
from fedjax_lab.types import Streaming

FEDAVG = {"family": "optimization", "paper": "Communication-Efficient Learning of Deep Networks from Decentralized Data", "year": 2017}

mean = part(kind="aggregator", **FEDAVG)(rules.mean)
total = part(kind="aggregator", **FEDAVG)(rules.total)


@part(kind="aggregator", family="communication", paper="signSGD: Compressed Optimisation for Non-Convex Problems", year=2018)
def vote() -> Streaming:
    """The sign of the weighted sum of signs, entry by entry; statistics, which no gradient moves, are averaged.

    Bernstein et al. (ICML 2018). No scale of a client's change matters, and where votes are even the entry stays. Take the step with a
    server optimizer such as sgd:lr=0.001.
    """
    average = rules.mean()

    def signs(value):
        return jax.tree.map(lambda moves, x: jnp.sign(x) if moves else x, tree.trainable(value), value)

    return Streaming(average.zero, lambda acc, value, weight: average.add(acc, signs(value), weight), average.merge,
                     lambda acc: signs(average.finish(acc)))
