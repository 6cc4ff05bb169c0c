"""Who sits where in a phase of a round, and what a round reports of those who sat."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import exchange, malice
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine.setting import Setting, World
from fedjax_lab.types import Cohort, Draw, Tree


class Seats(NamedTuple):
    """Who sits where in a phase.

    lay: of the slots;  cohort: in canonical order;  started: bool [S], like the cohort's mask, and those that are not heard;
    slots: in device order;  rows: where in the client tables the slots write, N for nowhere;  steps: int32 [S] of those who started;
    active: whether the phase takes place.
    """

    lay: sweeps.Layout
    cohort: Cohort
    started: jax.Array
    slots: exchange.Slot
    rows: jax.Array
    steps: jax.Array
    active: jax.Array | bool = True

    def only(self, active: jax.Array) -> Seats:
        """The same seats, all empty unless active."""
        slots = self.slots._replace(mask=self.slots.mask & active, heard=self.slots.heard & active)
        cohort = self.cohort._replace(mask=self.cohort.mask & active)
        rows = jnp.where(active, self.rows, self.cohort.clients)
        return self._replace(cohort=cohort, started=self.started & active, slots=slots, rows=rows, active=active)


def gather(table: Tree, at: jax.Array) -> Tree:
    return jax.tree.map(lambda t: jnp.take(t, at, axis=0, mode="clip"), table)


def scatter(table: Tree, at: jax.Array, rows: Tree) -> Tree:
    return jax.tree.map(lambda t, r: t.at[at].set(r, mode="drop", unique_indices=False), table, rows)


def seated(s: Setting, world: World, lay: sweeps.Layout, draw: Draw, present: jax.Array, clock) -> Seats:
    """The drawn clients in canonical order: the heard with most steps first, then by id; then those lost on the way, empty slots last."""
    mask = draw.mask
    size = jnp.where(mask, world.population.train.size[s.place(world, draw.ids)], 0)
    own = s.method.steps(size)
    fewer = jnp.maximum(jnp.round(draw.share * own), 1).astype(jnp.int32)
    allowance = jnp.where(draw.share < 1, jnp.minimum(fewer, draw.allowance), draw.allowance)
    allowance = malice.allowance(s.adversary, s.clients, draw.ids, allowance)
    steps = jnp.where(mask, jnp.minimum(own, allowance), -1)
    late = () if draw.base is None else (draw.base, jnp.broadcast_to(jnp.float32(draw.factor), mask.shape))
    late += () if draw.latest is None else (jnp.arange(mask.size, dtype=jnp.int32),)
    order = jax.lax.sort((~(mask & draw.heard), -steps, draw.ids, mask, size, steps, allowance, present, *late), num_keys=3)
    lost, _, ids, mask, size, steps, allowance, present, *late = meshes.constrain(order, meshes.replicated(lay.mesh))
    heard, start = ~lost, exchange.Start(late[0], clock - late[0], late[1], *(draw.latest[at] for at in late[2:])) if late else ()
    counts = jnp.where(heard[:, None], world.population.counts[s.place(world, ids)], 0)
    cohort = Cohort(ids, heard, jnp.where(heard, size, 0), jnp.where(heard, steps, 0), s.clients, clock, counts)
    cohort = cohort._replace(staleness=start.staleness if start else jnp.zeros_like(steps), public=world.population.public,
                             roster=jnp.where(mask, ids, -1))
    dealt = lay.deal(ids)
    slots = exchange.Slot(dealt, s.place(world, dealt), lay.deal(allowance), lay.filled(mask), lay.filled(heard), lay.deal(present))
    slots = slots._replace(start=jax.tree.map(lay.deal, start))
    rows = jnp.where(slots.heard, s.row(world, dealt), s.clients)
    slots, rows = meshes.constrain((slots, rows), meshes.replicated(lay.mesh))  # else the compiler cuts them, and sends them around to gather by
    return Seats(lay, cohort, mask, slots, rows, steps)


def all_seated(s: Setting, world: World, draw: Draw, clock) -> Seats:
    """All clients of the population, each with whether it was drawn."""
    ids, present = jnp.arange(s.clients, dtype=jnp.int32), jnp.zeros(s.clients, bool)
    present = present.at[jnp.where(draw.mask & draw.heard, draw.ids, s.clients)].set(True, mode="drop")
    whole = jnp.ones(s.clients, bool)
    unlimited = jnp.full(s.clients, np.iinfo(np.int32).max, jnp.int32)
    return seated(s, world, s.all, Draw((), ids, whole, whole, unlimited), present, clock)


def reported(seats: Mapping[bool, Seats], traces: list[tuple[bool, Seats, exchange.Trace]]) -> Mapping[str, jax.Array]:
    """Means of the metrics over the heard, and the ledger per slot; later phases overwrite metrics of the same name."""
    metrics = {}
    for _, at, trace in traces:
        heard = jnp.maximum(jnp.sum(at.cohort.mask), 1)
        for name, value in trace.metrics.items():
            summands = meshes.constrain(jnp.where(at.cohort.mask, value, 0), meshes.replicated(at.lay.mesh))  # added in one order
            mean = jnp.sum(summands) / heard
            metrics[name] = jnp.where(at.active, mean, metrics[name]) if name in metrics else mean
    drawn = seats[False].cohort
    who = {"ids": drawn.ids, "mask": seats[False].started, "heard": drawn.mask}
    sums = _ledger([(number, *rest) for number, (all_, *rest) in enumerate(traces) if not all_], drawn)
    if True not in seats:
        return {**metrics, **who, **sums}
    everyone = seats[True].cohort
    of_all = _ledger([(number, *rest) for number, (all_, *rest) in enumerate(traces) if all_], everyone)
    return {**metrics, **who, **sums, **{f"all_{k}": jnp.zeros_like(v).at[everyone.ids].set(v) for k, v in of_all.items()}}


def _ledger(traces: list[tuple[int, Seats, exchange.Trace]], cohort: Cohort) -> Mapping[str, jax.Array]:
    """Steps of each phase, bytes of all, and who broke, per slot."""
    finite = jnp.ones_like(cohort.mask)
    for _, at, trace in traces:  # what broke in one phase spreads in the next: the first names the clients
        finite = jnp.where(jnp.all(finite), trace.finite | ~at.cohort.mask, finite)
    none = jnp.zeros(cohort.mask.shape, jnp.uint32)
    bytes_of = {name: sum((getattr(trace, name) for *_, trace in traces), none) for name in ("bytes_up", "bytes_down")}
    steps = {f"steps{number}": jnp.where(at.started, at.steps, 0) for number, at, _ in traces}
    return {"finite": finite, **bytes_of, **steps}
