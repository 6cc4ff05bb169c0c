"""Synchronous rounds: a Method lowered to a Simulation.

One round draws a cohort, sorts it by (steps, id), gathers the clients' rows, runs each phase over the mesh, lets the server act and
scatters the rows back. Rounds are a loop inside one device call, with the evaluation as its tail.
"""
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lab import keys, tree
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import evaluate, exchange, ledger, malice, stream, tables
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine.seats import all_seated, gather, reported, scatter, seated
from fedjax_lab.engine.setting import Schedule, Setting, World
from fedjax_lab.types import (
    Adversary,
    Census,
    Facts,
    Key,
    Method,
    Participation,
    Population,
    Record,
    Simulation,
    Stacked,
    State,
    Stream,
    Task,
    Tree,
)


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
    streamed: bool = False,
    client_state: Literal["device", "host", "disk"] = "device",
    adversary: Adversary | None = None,
    schedule: Schedule | None = None,
) -> Simulation:
    """Lowers a method to rounds, synchronous ones by default.

    Args:
      task, method, population, participation: what is trained, how, on whom, and who takes part.
      mesh: from engine.mesh.make; all devices by default.
      chunk: clients vmapped at a time on each device.
      lanes: partial sums of an aggregate, a power of two of at least the devices; the result's bits belong to this number.
      length: the most rounds in one device call.
      eval_clients: how many clients the per-client evaluation looks at, all by default.
      eval_batch: examples at a time in evaluation.
      streamed: the population stays in the host arrays, or maps of files, that it is given in; each segment's clients travel.
      client_state: where the clients' rows live between segments. On "disk" they are in a file without a name, gone with the process.
      adversary: the clients that attack, and how.
      schedule: what a round is; one server and its cohort where None.

    Raises:
      ValueError: if the cohort is larger than the population, the lanes do not fit the devices, what is streamed does not fit the
        method, which wants all clients at once, or an attack does not fit the task or the method.
    """
    mesh = meshes.make() if mesh is None else mesh
    away = client_state != "device"
    s = setting(task, method, population, participation, mesh, chunk, lanes, length, eval_batch, streamed, away, adversary, schedule)
    panel = evaluate.panel(population, eval_clients)
    simulation = _streaming(s, population, panel, client_state) if streamed or away else _resident(s, population, panel)
    return simulation._replace(plan={**simulation.plan, "population": "streamed" if streamed else "device", "client_state": client_state})


def setting(task: Task, method: Method, population: Population, participation: Participation, mesh: Mesh, chunk: int, lanes: int, length: int,
            eval_batch: int, streamed: bool = False, away: bool = False, adversary: Adversary | None = None,
            schedule: Schedule | None = None) -> Setting:
    """What is static of a program, checked; see `build`."""
    if not 1 <= participation.slots <= population.clients:
        raise ValueError(f"cohort={participation.slots}: of {population.clients} clients; choose 1..{population.clients}")
    if length < 1:
        raise ValueError(f"length={length}: choose 1 or more rounds")
    if schedule is not None and schedule.stacked and (streamed or away):
        raise ValueError("gossip needs population and client_state on the device: every node has a part in every round")
    whole = any(phase.everyone for phase in method.exchanges)
    if whole and (streamed or away):
        raise ValueError(f"method '{method.info.name}' asks all clients at once: it needs population and client_state on the device")
    if participation.versions > 1 and not all(phase.now for phase in method.exchanges[1:]):
        raise ValueError(f"method '{method.info.name}' has several exchanges in a round: its clients cannot start from earlier models")
    capacity = tuple(max(1, stream.most(side.size)) for side in (population.train, population.test))
    lay = sweeps.layout(mesh, participation.slots, chunk, lanes)
    everyone = sweeps.layout(mesh, population.clients, chunk, lanes) if whole else None
    example = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in population.train.examples.items()}
    public = len(next(iter(population.public.values()), ()))
    if population.stages is not None and (streamed or away or schedule is not None or participation.versions > 1):
        raise ValueError("a sequence of tasks needs --schedule=sync, and population and client_state on the device")
    task_rounds = 0 if population.stages is None else int(population.stages.rounds)
    census = Census(population.clients, population.train.size, population.counts.shape[1], example, public, task_rounds)
    adversary = adversary if adversary and any(malice.counts(adversary, population.clients)) else None
    return Setting(task, method, participation, census, lay, everyone, capacity, length, eval_batch, streamed, away, adversary, schedule or SYNC)


def _resident(s: Setting, population: Population, panel: evaluate.Panel) -> Simulation:
    """Everything is on the devices, and a segment is one program."""
    everywhere = meshes.replicated(s.lay.mesh)
    world = meshes.place(world_of(s, population, panel), everywhere)
    start, segment = program(s)
    shapes = jax.eval_shape(start, world, jax.random.key(0))
    shardings = _shardings(s.lay.mesh, s.clients, shapes, s.schedule.stacked)
    run = jax.jit(segment, donate_argnums=(1,), out_shardings=(shardings, everywhere))
    cost = functools.cache(lambda: costs(s, world, shapes))
    return Simulation(world, jax.jit(start, out_shardings=shardings), run, s.length, plan(s, shapes, world), cost, _deployed(s),
                      functools.partial(fields, s, world, shapes))


def world_of(s: Setting, population: Population, panel: evaluate.Panel) -> World:
    """What does not evolve, when all of it is on the devices."""
    return World(population._replace(manifest={}), panel, extra=s.schedule.extra)


def costs(s: Setting, world: World, shapes: State) -> list[ledger.Cost]:
    """What a client's work in each phase costs."""
    return ledger.costs(s, world, shapes._replace(server=jax.eval_shape(s.schedule.one, shapes.server)))


def fields(s: Setting, world: World, shapes: State) -> list[str]:
    """What an upload consists of, all phases together."""
    row = jax.eval_shape(lambda rows: jax.tree.map(lambda x: x[0], rows), shapes.clients)
    found = jax.eval_shape(functools.partial(_uploads, s), world, jax.random.key(0), jax.eval_shape(s.schedule.one, shapes.server), row)
    return sorted({name for upload in found for name in upload})


def _deployed(s: Setting) -> Callable[[State], Tree]:
    return lambda state: s.schedule.deploy(s, state.server)


def program(s: Setting) -> tuple[Callable[[World, Key], State], Callable[..., tuple[State, Record]]]:
    """`init` and `segment` of a Simulation whose population and client rows are on the devices, not compiled."""

    def start(world, key):
        server, participation = _begin(s, key)
        facts = Facts(jnp.arange(s.clients, dtype=jnp.int32), world.population.train.size, world.population.counts)
        return State(s.schedule.first(s, server), *_rows(s, world, key, facts), participation, key, _versions(s, server))

    return start, _segment(s)


def _streaming(s: Setting, population: Population, panel: evaluate.Panel, client_state: str) -> Simulation:
    """The population, the clients' rows, or both live off the devices; a segment's share of them travels. See engine.stream."""
    everywhere = meshes.replicated(s.lay.mesh)
    put = functools.partial(meshes.place, sharding=everywhere)
    feeder = stream.Feeder(population, s.participation, panel.ids if s.method.personal else (), s.length, s.streamed, s.lay.mesh)
    resident = Population((), Stream(population.test.examples, (), ()), (), public=population.public) if s.streamed else population
    fixed = put(World(resident._replace(manifest={}), panel))

    def world_of(world: World, share: stream.Share) -> World:
        if share.population is None:
            return world._replace(ids=share.facts.id)
        train, test = share.population.train, share.population.test
        train, test = train._replace(examples=share.examples), test._replace(examples=world.population.test.examples)
        return World(share.population._replace(train=train, test=test, public=world.population.public), world.panel, share.facts.id)

    like = jax.eval_shape(world_of, fixed, feeder.like)
    new_rows = jax.jit(lambda key, facts: _rows(s, like, key, facts))
    begin = jax.jit(lambda key: _begin(s, key))
    table = tables.Table(s.clients, jax.eval_shape(new_rows, jax.random.key(0), feeder.like.facts), client_state) if s.away else None

    def state_of(key, facts):
        server, participation = _begin(s, key)
        return State(server, *_rows(s, like, key, facts), participation, key, _versions(s, server))

    shapes = jax.eval_shape(state_of, jax.random.key(0), feeder.like.facts if s.away else stream.facts_of(population))
    shardings = _shardings(s.lay.mesh, feeder.room.clients if s.away else s.clients, shapes)
    run = jax.jit(_segment(s), donate_argnums=(1,), out_shardings=(shardings, everywhere))

    def start(world, key):
        if not s.away:
            return jax.jit(state_of, out_shardings=shardings)(key, stream.facts_of(population))
        (server, participation), key = put((begin(key), key))
        return State(server, table.new(), (), participation, key, put(_versions(s, server)))

    def segment(world, state, clock, rounds, due=True):
        share = feeder.take(state, int(clock), int(rounds))
        if table is None:
            return run(world_of(world, share), state, clock, rounds, due)
        clients, wires = meshes.place(table.read(state.clients, share, new_rows(state.key, share.facts)), (shardings.clients, shardings.wires))
        after, record = run(world_of(world, share), state._replace(clients=clients, wires=wires), clock, rounds, due)
        return after._replace(clients=table.write(state.clients, share, (after.clients, after.wires)), wires=()), record

    return Simulation(fixed, start, segment, s.length, plan(s, shapes, like), functools.cache(lambda: costs(s, like, shapes)), _deployed(s),
                      functools.partial(fields, s, like, shapes))


def _segment(s: Setting):
    def segment(world, state, clock, rounds, due=True):
        state, reports = _rounds(s, world, state, clock, rounds)
        evaluation = functools.partial(s.schedule.evaluate, s, world, state)
        if due is True:  # known to the compiler
            return state, Record(reports, evaluation())
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(evaluation))
        return state, Record(reports, jax.lax.cond(due, evaluation, lambda: nothing))

    return segment


def _shardings(mesh: Mesh, clients: int, shapes: State, stacked: bool = False) -> State:
    """Rows [N, ...] are cut over `clients` where N divides evenly, they and the server's state over `model`; the rest is on all devices."""
    first = meshes.CLIENTS if clients % mesh.shape[meshes.CLIENTS] == 0 else None
    everywhere = jax.tree.map(lambda _: meshes.replicated(mesh), shapes)
    rows = {part: meshes.cut(mesh, getattr(shapes, part), first) for part in ("clients", "wires", *["server"] * stacked)}
    everywhere = everywhere._replace(server=meshes.cut(mesh, shapes.server))
    return everywhere._replace(versions=meshes.cut(mesh, shapes.versions, None), **rows)


def _begin(s: Setting, key) -> tuple[Tree, Tree]:
    """The server's and the sampler's first state."""
    server = s.method.init_server(keys.purpose(key, "server"), s.model.init(keys.purpose(key, "params")), s.census)
    return tree.strong((server, s.participation.init(keys.purpose(key, "participation"), s.census)))


def _versions(s: Setting, server: Tree) -> Tree:
    """The first states of the server that are kept, [V, ...], or ()."""
    kept = s.participation.versions
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (kept, *x.shape)), server) if kept > 1 else ()


def _rows(s: Setting, world: World, key, facts: Facts) -> tuple[Tree, tuple[Mapping[str, Tree], ...]]:
    """The first rows of these clients [n, ...], and their wires' memories per phase and field; of `world` only shapes matter."""
    params, row_key = s.model.init(keys.purpose(key, "params")), keys.purpose(key, "rows")
    known = s.census.example
    clients = tree.strong(jax.vmap(lambda f: s.method.init_client(keys.for_client(row_key, f.id), params, f._replace(example=known)))(facts))

    def memory(wire, field):
        row = wire.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), field))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (facts.id.shape[0], *x.shape)), row)

    shapes = jax.eval_shape(functools.partial(_uploads, s), world, key, _begin(s, key)[0], jax.tree.map(lambda x: x[0], clients))
    exchanges = zip(s.method.exchanges, shapes, strict=True)
    return clients, tree.strong(tuple({f: memory(wire, upload[f]) for f, wire in phase.up.items() if f in upload} for phase, upload in exchanges))


def _uploads(s: Setting, world: World, key, server: Tree, row: Tree) -> list[Mapping[str, Tree]]:
    """What one client uploads in each phase; for its shapes."""
    found, keep = [], {False: (), True: ()}
    slot = exchange.Slot(*[jnp.int32(0)] * 2, jnp.int32(1), *[jnp.ones((), bool)] * 3)
    for phase in s.method.exchanges:
        data = s.view(world, slot._replace(keep=keep[phase.everyone]), jnp.int32(0))
        result = phase.local(key, phase.broadcast(server, data.id, data.clock), row, exchange.plain(phase, server, data))
        row, keep[phase.everyone] = result.client, result.keep
        found.append(result.upload)
    return found


def _rounds(s: Setting, world: World, state: State, clock, rounds) -> tuple[State, Mapping[str, jax.Array]]:
    """`rounds` rounds (traced, at most s.length) and their reports [length, ...]."""
    one = jax.jit(lambda world, state, clock: s.schedule.round(s, world, state, clock), inline=True)
    shapes = jax.eval_shape(one, world, state, clock)[1]
    blank = jax.tree.map(lambda x: jnp.zeros((s.length, *x.shape), x.dtype), shapes)

    def body(i, carry):
        state, reports = carry
        state, report = one(world, state, clock + i)
        return state, jax.tree.map(lambda into, x: into.at[i].set(x), reports, report)

    return jax.lax.fori_loop(0, rounds, body, (state, blank))


def _round(s: Setting, world: World, state: State, clock) -> tuple[State, Mapping[str, jax.Array]]:
    world = world._replace(population=world.population.at(clock))
    key = keys.for_round(state.key, clock)
    draw = s.participation.draw(keys.purpose(key, "cohort"), state.participation, clock)
    seats = {False: seated(s, world, s.lay, draw, jnp.ones_like(draw.mask), clock)}
    if s.all is not None:
        seats[True] = all_seated(s, world, draw, clock)
    clients, server, wires, traces, sound, fields = state.clients, state.server, [], [], jnp.bool_(True), set()
    forged = (malice.FIELD,) if malice.forges(s.adversary) else ()
    versions = jax.tree.map(lambda kept, x: kept.at[clock % s.participation.versions].set(x), state.versions, server if state.versions != () else ())
    phases = enumerate(zip(s.method.exchanges, state.wires, strict=True))
    for everyone, group in itertools.groupby(phases, lambda numbered: numbered[1][0].everyone):
        rows = gather(clients, seats[everyone].rows)  # once for all phases in succession over the same cohort
        for number, (phase, table) in group:
            at = seats[everyone]
            at = at if phase.when is None else at.only(phase.when(keys.purpose(key, "when"), clock))
            memory = gather(table, seats[everyone].rows)
            slots = at.slots._replace(start=()) if phase.now else at.slots
            there = world._replace(roster=at.cohort.roster)
            shared = (there, server, key, clock) if not slots.start else (there, versions, state.key, clock)
            out = exchange.run(at.lay, phase, f"phase{number}", s.view, shared, slots, (rows, memory), s.begin, forged, s.later)
            forge = functools.partial(malice.forge, s.adversary, keys.purpose(key, f"attack{number}"))
            aggregates = exchange.aggregates(at.lay, phase, out, at.cohort, dict.fromkeys(forged, forge))
            fields |= aggregates.keys()
            sound &= tree.finite(aggregates)
            served = phase.serve(keys.purpose(key, f"serve{number}"), server, aggregates, at.cohort)
            server = served if phase.when is None else tree.select(at.active, served, server)
            rows, memory = out.row
            wires.append(scatter(table, at.rows, memory))
            seats[everyone] = seats[everyone]._replace(slots=seats[everyone].slots._replace(keep=out.stacked.keep))
            traces.append((everyone, at, jax.tree.map(at.lay.collect, out.stacked._replace(fields={}, keep=()))))
        clients = scatter(clients, seats[everyone].rows, rows)
    if set(forged) - fields:
        raise ValueError(f"--attack: method '{s.method.info.name}' has no field 'model' in its uploads to forge, only {', '.join(sorted(fields))}")
    report = {**reported(seats, traces), "sound": sound, **draw.metrics, **s.method.watch(seats[False].cohort)}
    return State(server, clients, tuple(wires), draw.state, state.key, versions), report


def _evaluate(s: Setting, world: World, state: State) -> Mapping[str, jax.Array]:
    params = s.method.deploy(state.server)
    values = evaluate.per_example(s.model, params, world.population.test.examples, s.lay.mesh, s.eval_batch)
    report, ids = evaluate.central(values), world.panel.ids
    for name, probe in malice.probes(s.adversary).items():
        change = functools.partial(probe, classes=s.census.classes)
        report[name] = evaluate.probed(s.model, params, world.population.test.examples, s.lay.mesh, s.eval_batch, change)
    if not ids.shape[0]:
        return report
    report |= evaluate.spread(evaluate.per_client(values, world.panel), "")
    if s.method.personal is None:
        return report
    lay = sweeps.layout(s.lay.mesh, ids.shape[0], s.lay.chunk, s.lay.lanes)
    key = keys.purpose(state.key, "personal")
    own = evaluate.personal(s, key, state.server, gather(state.clients, s.row(world, ids)), world, lay)
    return {**report, **evaluate.spread(own, "personal_")}


def plan(s: Setting, shapes: State, world: World) -> Mapping[str, object]:
    """What will run where, for people; memory as chunk x parameters x (optimizer slots + 2), rows and data."""
    params = jax.eval_shape(s.method.deploy, jax.eval_shape(s.schedule.one, shapes.server))
    tables, stack = tree.nbytes((shapes.clients, shapes.wires)), tree.nbytes(params) * _stacked(s)
    return {
        "devices": s.lay.mesh.size,
        "platform": s.lay.mesh.devices.flat[0].platform,
        "chunk": s.lay.chunk,
        "lanes": s.lay.lanes,
        "clients": s.clients,
        "cohort": s.lay.slots,
        "parameters": tree.size(params),
        "data_bytes": tree.nbytes(world.population),
        "table_bytes": tables,
        "stack_bytes": stack,
        "memory_bytes": s.lay.devices * (tree.nbytes(params) * (4 * s.lay.chunk + s.lay.lanes // s.lay.devices + 2) + tree.nbytes(world) + 3 * stack)
        + tables + 5 * tree.nbytes(shapes.server) * s.schedule.stacked,
        **s.schedule.plan(s),
    }


def _stacked(s: Setting) -> int:
    """How many uploads of the model are held at once for a rule that wants all of them, or for forging."""
    rules = [exchange.rule_of(phase, malice.FIELD) for phase in s.method.exchanges]
    held = malice.forges(s.adversary) or any(isinstance(rule, Stacked) for rule in rules)
    return s.lay.local * s.lay.devices * held


SYNC = Schedule(lambda s, server: server, _round, _evaluate, lambda s, server: s.method.deploy(server))
