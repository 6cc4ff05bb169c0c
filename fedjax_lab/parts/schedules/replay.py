"""A rolled-out schedule as a scheme of participation: the engine replays it, and its tables are the sampler's state."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.events import UNLIMITED, Update
from fedjax_lab.types import Draw, Participation, Tree


class Table(NamedTuple):
    """ids (-1 for nobody), base, allowance int32 [T, S], factor float32 [T, S]; counts {name: [T]}, each up to and with that update, and
    "refused" [T, 1], the uploads rejected since the update before; latest int32 [T, S, K + 1], see Draw, () where no one asks."""

    ids: jax.Array
    base: jax.Array
    allowance: jax.Array
    factor: jax.Array
    counts: dict[str, jax.Array]
    latest: Tree = ()


def replay(updates: Sequence[Update]) -> Participation:
    """Update by update those whose uploads it consumes, each starting from the model it was sent.

    The rounds of the run are the updates of the server. Beside the clients a Draw reports the time, the uploads consumed and rejected so
    far, and how many are waiting and in training.
    """
    table = packed(updates)
    stale = (np.arange(len(updates))[:, None] - table.base)[table.ids >= 0]

    def draw(key, state, clock):
        row = jax.tree.map(lambda x: x[clock], state)
        mask, latest = row.ids >= 0, None if isinstance(row.latest, tuple) else row.latest
        return Draw(state, jnp.maximum(row.ids, 0), mask, mask, row.allowance, row.counts, base=row.base, factor=row.factor, latest=latest)

    # at least two versions: with one the engine would not look where a client started
    return Participation(table.ids.shape[1], lambda key, census: jax.tree.map(jnp.asarray, table), draw, max(2, int(stale.max(initial=0)) + 1))


def packed(updates: Sequence[Update]) -> Table:
    """The updates as arrays on the host, S the most arrivals of any."""
    slots, count = max(1, max(len(u.arrivals) for u in updates)), len(updates)
    ids, factor = np.full((count, slots), -1, np.int32), np.ones((count, slots), np.float32)
    base = np.broadcast_to(np.arange(count, dtype=np.int32)[:, None], ids.shape).copy()
    allowance = np.full(ids.shape, UNLIMITED, np.int32)
    for t, update in enumerate(updates):
        for into, values in zip((ids, base, allowance, factor), zip(*update.arrivals), strict=False):  # but for when steps end
            into[t, : len(values)] = values
    uploads = np.cumsum((ids >= 0).sum(1), dtype=np.int32)
    counts = {name: np.array([getattr(u, name) for u in updates], np.int32) for name in ("rejected", "waiting", "training")}
    counts["refused"] = np.diff(counts["rejected"], prepend=0)[:, None]
    times = np.array([u.time for u in updates])
    return Table(ids, base, allowance, factor, {"time": times.astype(np.float32), "uploads": uploads, **counts}, _latest(updates, times, base))


def _latest(updates: Sequence[Update], times: np.ndarray, base: np.ndarray) -> np.ndarray | tuple[()]:
    """The newest of the models that are made up to when an arrival's steps end, and were when it was consumed."""
    most = max((len(a.ends) for u in updates for a in u.arrivals if a.ends is not None), default=0)
    if not most:
        return ()
    latest = np.repeat(base[:, :, None], most + 1, 2)
    for t, update in enumerate(updates):
        for slot, arrival in enumerate(update.arrivals):
            if arrival.ends is not None:
                found = np.clip(np.searchsorted(times, arrival.ends, "right"), arrival.base, t)
                latest[t, slot, 1 : len(found) + 1], latest[t, slot, len(found) + 1 :] = found, found[-1]
    return latest
