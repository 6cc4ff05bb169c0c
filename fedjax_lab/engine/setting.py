"""What a program closes over: its world, its schedule and all that is static of it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import evaluate, exchange, malice
from fedjax_lab.types import Adversary, Census, ClientData, Key, Method, Participation, Population, State, Task, Tree, View


class World(NamedTuple):
    """Everything that does not evolve.

    population: all clients, or those of the segment;  panel: who is evaluated;  ids: None, or int32 [U], the clients of the segment in
    ascending order, whose places in it stand for them;  extra: of the schedule;  roster: of the round, see Cohort, () outside of one.
    """

    population: Population
    panel: evaluate.Panel
    ids: jax.Array | None = None
    extra: Tree = ()
    roster: Tree = ()


class Schedule(NamedTuple):
    """What a round is, and of whom the server's state is. The functions take the Setting first.

    first: (setting, server) -> State.server, from what the method makes for one server.
    round: (setting, world, state, clock) -> (state, report).   evaluate: (setting, world, state) -> {name: scalar}.
    deploy: (setting, State.server) -> params, what is kept as the global model.
    one: (State.server) -> the state of one server.   stacked: whether State.server has a row per client.
    extra: arrays of the world beside the population.   plan: (setting) -> what a plan says beside.
    """

    first: Callable[[Any, Tree], Tree]
    round: Callable[..., tuple[State, Mapping[str, jax.Array]]]
    evaluate: Callable[..., Mapping[str, jax.Array]]
    deploy: Callable[[Any, Tree], Tree]
    one: Callable[[Tree], Tree] = lambda server: server
    stacked: bool = False
    extra: Tree = ()
    plan: Callable[[Any], Mapping[str, Any]] = lambda setting: {}


class Setting(NamedTuple):
    """What the program closes over: functions and static sizes, no arrays of the device. `all` is the layout of everyone, where asked for."""

    task: Task
    method: Method
    participation: Participation
    census: Census
    lay: sweeps.Layout
    all: sweeps.Layout | None
    capacity: tuple[int, int]
    length: int
    eval_batch: int
    streamed: bool
    away: bool
    adversary: Adversary | None = None
    schedule: Schedule | None = None

    @property
    def clients(self) -> int:
        return self.census.clients

    @property
    def model(self) -> Task:
        """What models are: the method's own task where it has one."""
        return self.method.task or self.task

    def place(self, world: World, client: jax.Array) -> jax.Array:
        """Where the clients' examples are: at their ids, or in a streamed population at their places in the segment."""
        return jnp.searchsorted(world.ids, client).astype(jnp.int32) if self.streamed else client

    def row(self, world: World, client: jax.Array) -> jax.Array:
        """Where the clients' rows are; tables that live off the device hold the segment's rows only."""
        return jnp.searchsorted(world.ids, client).astype(jnp.int32) if self.away else client

    def view(self, world: World, slot: exchange.Slot, clock) -> ClientData:
        """One client's window on the world."""
        population = world.population
        views = [View(stream, slot.at, c) for stream, c in zip((population.train, population.test), self.capacity, strict=True)]
        views[0] = views[0]._replace(poison=malice.poison(self.adversary, self.clients, self.census.classes, slot.id))
        late = slot.start[1:3] if slot.start else ()
        return ClientData(slot.id, clock, *views, population.counts[slot.at], slot.allowance, slot.keep, slot.present, *late)._replace(
            public=population.public, roster=jnp.full(self.lay.slots, -1, jnp.int32) if isinstance(world.roster, tuple) else world.roster)

    def begin(self, shared: tuple, slot: exchange.Slot) -> tuple[Tree, Key, jax.Array]:
        """The server, the key and the clock of the round in which a client started."""
        if not slot.start:
            return shared[1:]
        _, versions, key, _ = shared
        at, clock = slot.start.base % self.participation.versions, slot.start.base
        return jax.tree.map(lambda x: x[at], versions), keys.for_round(key, clock), clock

    def later(self, shared: tuple, slot: exchange.Slot, steps: jax.Array) -> tuple[Tree, jax.Array]:
        """The server and the clock that there are when a client has done so many local steps."""
        server, _, clock = self.begin(shared, slot)
        if not slot.start or isinstance(slot.start.latest, tuple):
            return server, clock
        clock = slot.start.latest[jnp.clip(steps, 0, slot.start.latest.shape[0] - 1)]
        return jax.tree.map(lambda x: x[clock % self.participation.versions], shared[1]), clock
