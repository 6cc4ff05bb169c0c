"""Participation: clients that are too slow for all of their steps."""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.registry import part
from fedjax_lab.spec import Range, Share
from fedjax_lab.types import Key, Participation, Tree

PAPER = "Federated Optimization in Heterogeneous Networks"


class Slow(NamedTuple):
    """inner: the state of the scheme.  key: of who is slow for good.  clients: int32 scalar, N."""

    inner: Tree
    key: Key
    clients: jax.Array


@part(kind="participation", family="participation", paper=PAPER, year=2020)
def stragglers(inner: Participation, *, share: Share = 0.3, steps: Literal["random"] | Annotated[float, Range(0, 1, open="low")] = 0.5,
               redraw: bool = False) -> Participation:
    """A share of all clients does only a share of its local steps, at least one of them.

    Args:
      share: of the population that is slow, rounded to whole clients.
      steps: share of its own steps that a slow client does, or random for one between 0 and 1, in every round and for every client anew.
      redraw: other slow clients in every round; by default they are the same for good.
    """

    def init(key, census):
        return Slow(inner.init(key, census), keys.purpose(key, "stragglers"), jnp.int32(census.clients))

    def draw(key, state, clock):
        found, pace = inner.draw(key, state.inner, clock), keys.purpose(key, "stragglers")
        rank = keys.shuffle(pace if redraw else state.key, found.ids, state.clients)
        slow = rank < jnp.round(share * state.clients)
        part = jax.vmap(lambda i: jax.random.uniform(keys.for_client(pace, i)))(found.ids) if steps == "random" else steps
        return found._replace(state=state._replace(inner=found.state), share=jnp.where(slow, part, 1.0) * found.share)

    return inner._replace(init=init, draw=draw)
