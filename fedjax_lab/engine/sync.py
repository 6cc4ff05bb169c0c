"""Synchronous rounds: a Method lowered to a Simulation.

One round draws a cohort, sorts it by (steps, id), gathers the clients' rows, runs each phase over the mesh, lets the server act and
scatters the rows back. Rounds are a loop inside one device call, with the evaluation as its tail.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lab import keys, tree
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import evaluate, exchange
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.types import ClientData, Cohort, Facts, Method, Participation, Population, Record, Simulation, State, Task, Tree, View


class World(NamedTuple):
    """Everything that does not evolve."""

    population: Population
    panel: evaluate.Panel


class Setting(NamedTuple):
    """What the program closes over: functions and static sizes, no arrays."""

    task: Task
    method: Method
    participation: Participation
    lay: sweeps.Layout
    capacity: tuple[int, int]
    clients: int
    length: int
    eval_batch: int

    def view(self, world: World, client, clock, allowance, keep=()) -> ClientData:
        """One client's window on the world."""
        population = world.population
        views = [View(stream, client, c) for stream, c in zip((population.train, population.test), self.capacity, strict=True)]
        return ClientData(client, clock, *views, population.counts[client], allowance, keep)


def build(
    task: Task,
    method: Method,
    population: Population,
    participation: Participation,
    *,
    mesh: Mesh | None = None,
    chunk: int = 1,
    lanes: int = 8,
    length: int = 1,
    eval_clients: int | None = None,
    eval_batch: int = 500,
) -> Simulation:
    """Lowers a method to synchronous rounds.

    Args:
      task, method, population, participation: what is trained, how, on whom, and who takes part.
      mesh: from engine.mesh.make; all devices by default.
      chunk: clients vmapped at a time on each device.
      lanes: partial sums of an aggregate, a power of two of at least the devices; the result's bits belong to this number.
      length: the most rounds in one device call.
      eval_clients: how many clients the per-client evaluation looks at, all by default.
      eval_batch: examples at a time in evaluation.

    Raises:
      ValueError: if the cohort is larger than the population, or the lanes do not fit the devices.
    """
    if not 1 <= participation.slots <= population.clients:
        raise ValueError(f"cohort={participation.slots}: of {population.clients} clients; choose 1..{population.clients}")
    if length < 1:
        raise ValueError(f"length={length}: choose 1 or more rounds")
    mesh = meshes.make() if mesh is None else mesh
    capacity = tuple(max(1, int(np.max(stream.size, initial=0))) for stream in (population.train, population.test))
    lay = sweeps.layout(mesh, participation.slots, chunk, lanes)
    s = Setting(task, method, participation, lay, capacity, population.clients, length, eval_batch)
    host = World(population._replace(manifest={}), evaluate.panel(population, eval_clients))
    world = jax.device_put(host, meshes.replicated(mesh))
    shapes = jax.eval_shape(lambda w, k: _init(s, w, k), world, jax.random.key(0))
    shardings = _shardings(mesh, population.clients, shapes)

    def segment(world, state, clock, rounds):
        state, reports = _rounds(s, world, state, clock, rounds)
        return state, Record(reports, _evaluate(s, world, state))

    init = jax.jit(lambda world, key: _init(s, world, key), out_shardings=shardings)
    run = jax.jit(segment, donate_argnums=(1,), out_shardings=(shardings, meshes.replicated(mesh)))
    return Simulation(world, init, run, length, _plan(s, shapes, world))


def _shardings(mesh: Mesh, clients: int, shapes: State) -> State:
    """Rows [N, ...] are cut over the devices where N divides evenly; everything else is on all of them."""
    rows = meshes.dealt(mesh) if clients % mesh.size == 0 else meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: meshes.replicated(mesh), shapes)
    return everywhere._replace(**{part: jax.tree.map(lambda _: rows, getattr(shapes, part)) for part in ("clients", "wires")})


def _init(s: Setting, world: World, key) -> State:
    params = s.task.init(keys.purpose(key, "params"))
    population = world.population
    server = s.method.init_server(keys.purpose(key, "server"), params, population)
    facts = Facts(jnp.arange(s.clients, dtype=jnp.int32), population.train.size, population.counts)
    row_key = keys.purpose(key, "rows")
    clients = jax.vmap(lambda f: s.method.init_client(keys.for_client(row_key, f.id), params, f))(facts)
    participation = s.participation.init(keys.purpose(key, "participation"), population)
    state = State(server, clients, (), participation, key)
    return tree.strong(state._replace(wires=_init_wires(s, world, state)))


def _init_wires(s: Setting, world: World, state: State) -> tuple[Mapping[str, Tree], ...]:
    """The senders' memories {field: [N, ...]}, per phase."""

    def uploads():
        row, keep, found = jax.tree.map(lambda x: x[0], state.clients), (), []
        for phase in s.method.exchanges:
            data = s.view(world, jnp.int32(0), jnp.int32(0), jnp.int32(1), keep)
            result = phase.local(state.key, phase.broadcast(state.server, data.id, data.clock), row, data)
            row, keep = result.client, result.keep
            found.append(result.upload)
        return found

    def table(wire, field):
        row = wire.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), field))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (s.clients, *x.shape)), row)

    exchanges = zip(s.method.exchanges, jax.eval_shape(uploads), strict=True)
    return tuple({field: table(wire, upload[field]) for field, wire in phase.up.items()} for phase, upload in exchanges)


def _rounds(s: Setting, world: World, state: State, clock, rounds) -> tuple[State, Mapping[str, jax.Array]]:
    """`rounds` rounds (traced, at most s.length) and their reports [length, ...]."""
    one = jax.jit(lambda world, state, clock: _round(s, world, state, clock), inline=True)
    shapes = jax.eval_shape(one, world, state, clock)[1]
    blank = jax.tree.map(lambda x: jnp.zeros((s.length, *x.shape), x.dtype), shapes)

    def body(i, carry):
        state, reports = carry
        state, report = one(world, state, clock + i)
        return state, jax.tree.map(lambda into, x: into.at[i].set(x), reports, report)

    return jax.lax.fori_loop(0, rounds, body, (state, blank))


def _round(s: Setting, world: World, state: State, clock) -> tuple[State, Mapping[str, jax.Array]]:
    key, lay = keys.for_round(state.key, clock), s.lay
    participation, cohort, allowance = _draw(s, world, state, key, clock)
    slots = exchange.Slot(lay.deal(cohort.ids), lay.deal(allowance), lay.filled(cohort.mask), ())
    at = jnp.where(slots.mask, slots.id, s.clients)  # an empty slot reads anything and writes nowhere
    rows, server, wires, traces = _gather(state.clients, at), state.server, [], []
    for number, (phase, table) in enumerate(zip(s.method.exchanges, state.wires, strict=True)):
        shared = (world, server, key, clock)
        out = exchange.run(lay, phase, f"phase{number}", s.view, shared, slots, (rows, _gather(table, at)))
        aggregate = exchange.aggregates(lay, phase, out, cohort)
        server = phase.serve(keys.purpose(key, f"serve{number}"), server, aggregate, cohort)
        rows, memory = out.row
        wires.append(_scatter(table, at, memory))
        slots = slots._replace(keep=out.stacked.keep)
        traces.append(jax.tree.map(lay.collect, out.stacked._replace(fields={}, keep=())))
    clients = _scatter(state.clients, at, rows)
    return State(server, clients, tuple(wires), participation, state.key), _report(traces, cohort)


def _gather(table: Tree, at: jax.Array) -> Tree:
    return jax.tree.map(lambda t: jnp.take(t, at, axis=0, mode="clip"), table)


def _scatter(table: Tree, at: jax.Array, rows: Tree) -> Tree:
    return jax.tree.map(lambda t, r: t.at[at].set(r, mode="drop", unique_indices=False), table, rows)


def _draw(s: Setting, world: World, state: State, key, clock) -> tuple[Tree, Cohort, jax.Array]:
    """The cohort in canonical order: the longest clients first, then by id, empty slots last."""
    participation, ids, mask, allowance = s.participation.draw(keys.purpose(key, "cohort"), state.participation, clock)
    size = jnp.where(mask, world.population.train.size[ids], 0)
    steps = jnp.where(mask, jnp.minimum(s.method.steps(size), allowance), -1)
    _, ids, mask, size, steps, allowance = jax.lax.sort((-steps, ids, mask, size, steps, allowance), num_keys=2)
    return participation, Cohort(ids, mask, size, jnp.maximum(steps, 0), s.clients, clock), allowance


def _report(traces: list[exchange.Trace], cohort: Cohort) -> Mapping[str, jax.Array]:
    """Means of the metrics over the cohort, and the ledger per slot; later phases overwrite metrics of the same name."""
    heard = jnp.maximum(jnp.sum(cohort.mask), 1)
    metrics = {k: jnp.sum(jnp.where(cohort.mask, v, 0)) / heard for t in traces for k, v in t.metrics.items()}
    ledger = {name: sum(getattr(t, name) for t in traces) for name in ("bytes_up", "bytes_down")}
    finite = jnp.ones_like(cohort.mask)
    for t in traces:  # what broke in one phase spreads in the next: the first names the clients
        finite = jnp.where(jnp.all(finite), t.finite | ~cohort.mask, finite)
    return {**metrics, **ledger, "finite": finite, "ids": cohort.ids, "mask": cohort.mask}


def _evaluate(s: Setting, world: World, state: State) -> Mapping[str, jax.Array]:
    params = s.method.deploy(state.server)
    values = evaluate.per_example(s.task, params, world.population.test.examples, s.lay.mesh, s.eval_batch)
    report, ids = evaluate.central(values), world.panel.ids
    if not ids.shape[0]:
        return report
    report |= evaluate.spread(evaluate.per_client(values, world.panel), "")
    if s.method.personal is None:
        return report
    lay = sweeps.layout(s.lay.mesh, ids.shape[0], s.lay.chunk, s.lay.lanes)
    key = keys.purpose(state.key, "personal")
    own = evaluate.personal(s, key, state.server, _gather(state.clients, ids), world, lay)
    return {**report, **evaluate.spread(own, "personal_")}


def _plan(s: Setting, shapes: State, world: World) -> Mapping[str, object]:
    """What will run where, for people; memory as chunk x parameters x (optimizer slots + 2), rows and data."""
    params = jax.eval_shape(s.method.deploy, shapes.server)
    tables = tree.nbytes((shapes.clients, shapes.wires))
    return {
        "devices": s.lay.devices,
        "platform": s.lay.mesh.devices.flat[0].platform,
        "chunk": s.lay.chunk,
        "lanes": s.lay.lanes,
        "clients": s.clients,
        "cohort": s.lay.slots,
        "parameters": tree.size(params),
        "data_bytes": tree.nbytes(world.population),
        "table_bytes": tables,
        "memory_bytes": s.lay.devices * (tree.nbytes(params) * (4 * s.lay.chunk + s.lay.lanes // s.lay.devices + 2) + tree.nbytes(world))
        + tables,
    }
