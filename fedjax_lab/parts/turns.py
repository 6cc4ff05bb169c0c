"""Local training of two parts of a client in turns, a pass of the one and a pass of the other."""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Batches, Work, batches
from fedjax_lab.types import ClientData, Key


def in_turns(key: Key, data: ClientData, work: Work, first: str) -> Batches:
    """Every pass twice: `at(u)` is (second, batch), where `second` says whose turn it is. Twice as many steps.

    The second ones are the batches of `local.batches` with this key, in their order; those before come from its purpose `first`.
    """
    passes = [batches(k, data, work) for k in (keys.purpose(key, first), key)]
    total, each = work.steps(data.size), work._replace(epochs=1, local_steps=0).steps(data.size)

    def at(u):
        epoch = u // jnp.maximum(2 * each, 1)
        length, inside = jnp.minimum(each, total - epoch * each), u - 2 * each * epoch
        second = inside >= length
        t = epoch * each + inside - second * length
        return second, tree.select(second, passes[1].at(t), passes[0].at(t))

    return passes[1]._replace(steps=jnp.minimum(2 * total, data.allowance), at=at)
