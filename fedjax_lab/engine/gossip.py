"""Gossip: rounds without a server. Every node is the server of its own and hears its neighbors.

In a round each active node broadcasts to itself, does its client's work on its own data, and makes one aggregate of its neighbors'
uploads and its own, which its copy of the method then serves. What the others' uploads mean to node i: a field with the weighted mean as
its rule becomes sum_j W_ij w_j field_j / sum_j W_ij w_j, and the field "model" the change from x_i to the same mean of what the others'
models are after their work; so the default serve gives x_i <- sum_j W_ij z_j. Other streaming rules count neighbor j as N W_ij copies, and
stacked rules see the neighborhood, its own upload first, as changes from x_i.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_lab import keys, rules, tree
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import evaluate, exchange, malice, sync
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine.seats import Seats, gather, reported, scatter, seated
from fedjax_lab.engine.setting import Schedule, Setting, World
from fedjax_lab.types import Cohort, Draw, Links, Participation, Phase, Stacked, State, Topology, Tree

MODEL = "model"
FEW = 8  # a step goes neighbor by neighbor where they are at most a share of 1 / FEW of the nodes; else it is one product of matrices


class Nodes(NamedTuple):
    """State.server of a gossip.

    server: the method's, [N, ...], a row per node;  mass: float32 [N], how much each node's model counts on a directed graph, () elsewhere.
    """

    server: Tree
    mass: Tree = ()


class Mixing(NamedTuple):
    """How nodes mix: on which graph, how many steps a round with the same W, and what; see `schedule`."""

    topology: Topology
    steps: int
    order: str


class Every(frozenset):
    """The set of all names."""

    def __contains__(self, name: object) -> bool:
        return True


def schedule(topology: Topology, *, steps: int = 1, order: Literal["after", "beside"] = "after") -> Schedule:
    """Rounds of gossip, for engine.sync.build; its participation must seat all nodes, as `seating` makes it.

    Args:
      topology: who hears whom.
      steps: gossip steps in a round, with the same W and no training between.
      order: whether the models are mixed after the clients' work, or beside it: then the models that it starts from are mixed, and each
        node adds its own change.
    """
    mixing = Mixing(topology, steps, order)
    return Schedule(
        first=functools.partial(_first, mixing), round=functools.partial(_round, mixing), evaluate=_evaluate, deploy=_mean, stacked=True,
        one=lambda nodes: jax.tree.map(lambda x: x[0], nodes.server), extra=topology.arrays,
        plan=lambda setting: {"graph": topology.name, "degree": topology.degree, "gap": topology.gap, "gossip_steps": steps},
    )


def seating(participation: Participation, clients: int) -> Participation:
    """The same draws with a slot for every client; who was not drawn does not start."""

    def draw(key, state, clock):
        drawn = participation.draw(key, state, clock)
        at = jnp.where(drawn.mask, drawn.ids, clients)

        def put(x, dtype):
            return jnp.zeros(clients, dtype).at[at].set(jnp.broadcast_to(x, at.shape).astype(dtype), mode="drop")

        ids = jnp.arange(clients, dtype=jnp.int32)
        return Draw(drawn.state, ids, put(True, bool), put(drawn.heard, bool), put(drawn.allowance, jnp.int32), drawn.metrics,
                    put(drawn.share, jnp.float32))

    return Participation(clients, participation.init, draw)


def among(links: Links, active: jax.Array, directed: bool) -> Links:
    """The links of nodes that are active on both ends; what the others would have had stays with the hearer, or with the sender where the
    columns of W sum to one."""
    weight = jnp.where(active[:, None] & active[links.ids], links.weight, 0)
    gone = links.weight - weight
    lost = jnp.zeros_like(links.own).at[links.ids].add(gone) if directed else gone.sum(1)
    return links._replace(weight=weight, own=links.own + lost)


def mix(links: Links, value: Tree, steps: int = 1) -> Tree:
    """W^steps value, for leaves [N, ...]."""
    n, width = links.ids.shape
    if FEW * width > n:
        w = jnp.diag(links.own).at[jnp.arange(n)[:, None], links.ids].add(links.weight)
        step = functools.partial(jax.tree.map, lambda x: jnp.einsum("ij,j...->i...", w.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST))
    else:
        step = functools.partial(jax.tree.map, functools.partial(_heard, links))
    return value if steps == 0 else step(value) if steps == 1 else jax.lax.fori_loop(0, steps, lambda _, x: step(x), value)


def _heard(links: Links, x: jax.Array) -> jax.Array:
    """W x, neighbor by neighbor."""

    def column(weight):
        return weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

    def add(k, total):
        return total + column(links.weight[:, k]) * x[links.ids[:, k]]

    return jax.lax.fori_loop(0, links.ids.shape[1], add, column(links.own) * x)


class Neighborhood(NamedTuple):
    """Whom the nodes hear in a round. links: of the active ones;  cohort: of all nodes, by id, its mask for who is heard."""

    links: Links
    cohort: Cohort

    def of(self, node: jax.Array) -> Cohort:
        """The cohort of one node: itself, then its neighbors."""
        ids = jnp.append(node, self.links.ids[node])
        mask = self.cohort.mask[ids] & (jnp.append(1, self.links.weight[node]) > 0)
        own = {k: jnp.where(mask, getattr(self.cohort, k)[ids], 0) for k in ("size", "steps", "staleness")}
        counts = jnp.where(mask[:, None], self.cohort.counts[ids], 0)
        return self.cohort._replace(ids=ids, mask=mask, counts=counts, **own)


def _first(mixing: Mixing, s: Setting, server: Tree) -> Nodes:
    """All nodes start alike."""
    name, n = s.method.info.name, mixing.topology.nodes
    if n != s.clients or s.lay.slots != n:
        raise ValueError(f"graph '{mixing.topology.name}': has {n} nodes for {s.clients} clients in {s.lay.slots} slots; they must be as many")
    for phase in s.method.exchanges:
        if phase.everyone or phase.down:
            why = "asks all clients at once" if phase.everyone else "has a wire on the way down"
            raise ValueError(f"method '{name}' {why}, which gossip has not: there is no server; choose --schedule=sync")
        ruled = [f for f in phase.aggregate if mixing.steps > 1 or mixing.order != "after" or mixing.topology.directed]
        if ruled:
            raise ValueError(f"method '{name}' has its own rule for '{ruled[0]}', which needs an undirected graph and gossip:steps=1,order=after")
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), server)
    return Nodes(copies, jnp.ones(n, jnp.float32) if mixing.topology.directed else ())


def _round(mixing: Mixing, s: Setting, world: World, state: State, clock) -> tuple[State, Mapping[str, jax.Array]]:
    key = keys.for_round(state.key, clock)
    draw = s.participation.draw(keys.purpose(key, "cohort"), state.participation, clock)
    seats = seated(s, world, s.lay, draw, jnp.ones_like(draw.mask), clock)
    links = mixing.topology.at(world.extra, keys.purpose(key, "graph"), clock)
    nodes, rows, wires, traces, sound = state.server, gather(state.clients, seats.rows), [], [], jnp.bool_(True)
    keep: Tree = ()
    for number, (phase, table) in enumerate(zip(s.method.exchanges, state.wires, strict=True)):
        at = seats if phase.when is None else seats.only(phase.when(keys.purpose(key, "when"), clock))
        slots = at.slots._replace(keep=keep, start=gather(nodes.server, at.slots.id))
        memory = gather(table, seats.rows)
        out = exchange.run(at.lay, phase, f"phase{number}", functools.partial(_view, s), (world, key, clock), slots, (rows, memory), _begin, Every())
        place = _places(at.lay, slots.id)
        hood = Neighborhood(*_active(mixing, links, at))
        fields = jax.tree.map(lambda x, place=place: x[place], out.stacked.fields)
        aggregates, mass = _aggregates(mixing, s, phase, hood, nodes, fields, keys.purpose(key, f"attack{number}"))
        sound &= tree.finite(aggregates)
        nodes = Nodes(_served(phase, keys.purpose(key, f"serve{number}"), nodes.server, aggregates, hood), mass)
        rows, memory = out.row
        keep = out.stacked.keep
        wires.append(scatter(table, at.rows, memory))
        trace = jax.tree.map(at.lay.collect, out.stacked._replace(fields={}, keep=()))
        traces.append((False, at, _sent(mixing, hood, trace, at.cohort.ids, fields)))
    clients = scatter(state.clients, seats.rows, rows)
    report = {**reported({False: seats}, traces), "sound": sound, **draw.metrics, **s.method.watch(seats.cohort)}
    return State(nodes, clients, tuple(wires), draw.state, state.key, state.versions), report


def _begin(shared: tuple, slot: exchange.Slot) -> tuple[Tree, jax.Array, jax.Array]:
    """A node starts from its own state."""
    _, key, clock = shared
    return slot.start, key, clock


def _view(s: Setting, world: World, slot: exchange.Slot, clock) -> Any:
    return s.view(world, slot._replace(start=()), clock)


def _places(lay: sweeps.Layout, ids: jax.Array) -> jax.Array:
    """int32 [N]: where in device order each node sits."""
    at = jnp.where(lay.deal_padding(), ids, lay.slots)
    return jnp.zeros(lay.slots, jnp.int32).at[at].set(jnp.arange(ids.shape[0], dtype=jnp.int32), mode="drop")


def _active(mixing: Mixing, links: Links, at: Seats) -> tuple[Links, Cohort]:
    """The links among the nodes heard, and the cohort by id."""
    order = jnp.argsort(at.cohort.ids)
    by_id = {k: getattr(at.cohort, k)[order] for k in ("ids", "mask", "size", "steps", "staleness", "counts")}
    cohort = at.cohort._replace(**by_id)
    return among(links, cohort.mask, mixing.topology.directed), cohort


def _aggregates(mixing: Mixing, s: Setting, phase: Phase, hood: Neighborhood, nodes: Nodes, fields: Mapping[str, tuple],
                key) -> tuple[dict[str, Tree], Tree]:
    """{field: [N, ...]} what each node makes of what it hears, and the masses after it."""
    found, mass = {}, nodes.mass
    ids = jnp.arange(s.clients, dtype=jnp.int32)
    for field, (value, weight) in fields.items():
        x = None
        if field == MODEL:
            x = jax.vmap(lambda server, i: phase.broadcast(server, i, hood.cohort.clock).get(MODEL))(nodes.server, ids)
            if jax.tree.structure(x) != jax.tree.structure(value):
                raise ValueError(f"method '{s.method.info.name}' sends a 'model' that is no change of the one it gets; gossip cannot mix it")
        made = functools.partial(_aggregate, mixing, s, phase.aggregate.get(field), hood, nodes.mass, weight, x)
        if field == malice.FIELD and malice.forges(s.adversary):
            value = _forged(s, key, hood.cohort, value, weight, x, made)
        found[field] = made(value)
        if field == MODEL and mixing.topology.directed:
            mass = mix(hood.links, nodes.mass, mixing.steps)
    return found, mass


def _aggregate(mixing: Mixing, s: Setting, rule: Any, hood: Neighborhood, mass: Tree, weight: Tree, x: Tree | None, value: Tree) -> Tree:
    if rule is not None:
        return (_stacked if isinstance(rule, Stacked) else _streamed)(s, rule, hood, value, weight, x)
    return _means(mixing, hood.links, *_wide(s.lay.mesh, (value, weight, x, mass)))


def _forged(s: Setting, key, cohort: Cohort, value: Tree, weight: Tree, x: Tree, made: Callable[[Tree], Tree]) -> Tree:
    """The changes with what members send: to them and to attacks all uploads are changes from the average model x, and the rule is what the
    nodes make of them on average."""
    heard = cohort.mask / jnp.maximum(jnp.sum(cohort.mask), 1)
    apart = jax.tree.map(lambda x: x - jnp.einsum("i,i...->...", heard.astype(x.dtype), x), x)

    def rule(stack):
        return jax.tree.map(lambda made, a: jnp.einsum("i,i...->...", heard.astype(a.dtype), made + a), made(tree.sub(stack, apart)), apart)

    return tree.sub(malice.forge(s.adversary, key, tree.add(value, apart), weight, cohort, rule), apart)


def _means(mixing: Mixing, links: Links, value: Tree, weight: Tree, x: Tree | None, mass: Tree) -> Tree:
    """The weighted means of W^steps; of the model as changes from x, where a node of mass m has m x to give, and its change."""

    def one(v, w, x=None):
        w = w.reshape(*w.shape, *[1] * (v.ndim - w.ndim)).astype(v.dtype)
        m = jnp.ones((), v.dtype) if isinstance(mass, tuple) else mass.reshape(-1, *[1] * (v.ndim - 1)).astype(v.dtype)
        given = v if x is None else m * x + (v if mixing.order == "after" else 0)
        total, count = mix(links, (jnp.where(w == 0, 0, w * given), w * (m if x is not None else 1)), mixing.steps)
        mean = total / jnp.where(count == 0, 1, count)
        if x is None:
            return jnp.where(count == 0, 0, mean)
        return jnp.where(count == 0, 0, mean - x) + (jnp.where(w == 0, 0, v) if mixing.order == "beside" else 0)

    return jax.tree.map(one, value, rules.spread(weight, value), *[] if x is None else [x])


def _streamed(s: Setting, rule: Any, hood: Neighborhood, value: Tree, weight: Tree, x: Tree | None) -> Tree:
    """A streaming rule over each neighborhood, in which neighbor j counts as N W_ij uploads."""
    n, links = s.clients, hood.links
    given = value if x is None else tree.add(value, x)

    def add(acc, ids, share):
        seen = jax.tree.map(lambda v: v[ids], given)
        seen = seen if x is None else tree.sub(seen, x)
        scaled = jax.tree.map(lambda w: w[ids] * (n * share).reshape(-1, *[1] * (w.ndim - 1)), weight)
        return jax.vmap(rule.add)(acc, seen, scaled)

    acc = add(jax.vmap(rule.zero)(value, weight), jnp.arange(n), links.own)
    acc = jax.lax.fori_loop(0, links.ids.shape[1], lambda k, acc: add(acc, links.ids[:, k], links.weight[:, k]), acc)
    return jax.vmap(rule.finish)(acc)


def _stacked(s: Setting, rule: Stacked, hood: Neighborhood, value: Tree, weight: Tree, x: Tree | None) -> Tree:
    """A rule of all uploads at once over each neighborhood, node by node: the own upload is the first."""

    value, weight, x = meshes.constrain((value, weight, x), jax.tree.map(lambda _: meshes.replicated(s.lay.mesh), (value, weight, x)))
    given = value if x is None else tree.add(value, x)

    def one(node):
        cohort = hood.of(node)
        stack = jax.tree.map(lambda v: v[cohort.ids], given)
        stack = stack if x is None else jax.tree.map(lambda v, own: v - own[node], stack, x)
        heard = jax.tree.map(lambda w: jnp.where(cohort.mask.reshape(-1, *[1] * (w.ndim - 1)), w[cohort.ids], 0), weight)
        return rule.combine(stack, heard, cohort)

    return jax.lax.map(one, jnp.arange(s.clients, dtype=jnp.int32))


def _served(phase: Phase, key, server: Tree, aggregates: Mapping[str, Tree], hood: Neighborhood) -> Tree:
    """Every active node serves itself."""

    def one(node, server, aggregate):
        served = phase.serve(keys.for_client(key, node), server, aggregate, hood.of(node))
        return tree.select(hood.cohort.mask[node], served, server)

    return jax.vmap(one)(jnp.arange(hood.cohort.clients, dtype=jnp.int32), server, aggregates)


def _sent(mixing: Mixing, hood: Neighborhood, trace: exchange.Trace, ids: jax.Array, fields: Mapping[str, tuple]) -> exchange.Trace:
    """The trace with the bytes that each node sends: its upload to each neighbor that hears it, and in further steps what it then has.
    In as many summands as keep them below 2^32."""
    links, n = hood.links, hood.cohort.clients
    again = sum(x.size // n * x.dtype.itemsize for value, _ in fields.values() for x in jax.tree.leaves(value)) * (mixing.steps - 1)
    degree = jnp.zeros(n, jnp.uint32).at[links.ids].add((links.weight > 0).astype(jnp.uint32))[ids]
    first = rules.value_bits([jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for value, _ in fields.values() for x in jax.tree.leaves(value)]) // 4
    parts = 1 + links.ids.shape[1] * (again + first) // 2**32
    split = [(degree + part) // parts for part in range(parts)]
    sent = [d * (trace.bytes_up + jnp.where(trace.bytes_up > 0, again, 0).astype(jnp.uint32)) for d in split]
    return trace._replace(bytes_up=sent[0] if parts == 1 else jnp.stack(sent, -1), bytes_down=jnp.zeros_like(trace.bytes_down))


def _mean(s: Setting, nodes: Nodes) -> Tree:
    """The average of the nodes' models, exact where they are the same."""
    return jax.tree.map(lambda x: x[0] + jnp.mean(x - x[0], 0).astype(x.dtype), jax.vmap(s.method.deploy)(nodes.server))


def _evaluate(s: Setting, world: World, state: State) -> Mapping[str, jax.Array]:
    """The averaged model as the global one, each node's own as the personal one, and how far they are apart:
    consensus_distance = 1/N sum_i ||x_i - x_mean||^2."""
    mean = _mean(s, state.server)
    shown = s._replace(method=s.method._replace(deploy=lambda params: params, personal=None))
    report = dict(sync.SYNC.evaluate(shown, world, state._replace(server=mean)))
    apart = jax.tree.map(lambda x, mean: jnp.sum(jnp.square((x - mean).astype(jnp.float32))), jax.vmap(s.method.deploy)(state.server.server), mean)
    report["consensus_distance"] = sum(jax.tree.leaves(apart), jnp.float32(0)) / s.clients
    ids = world.panel.ids
    if not ids.shape[0]:
        return report
    own = s._replace(method=s.method._replace(personal=_personal(s)))
    lay = sweeps.layout(s.lay.mesh, ids.shape[0], s.lay.chunk, s.lay.lanes)
    rows = gather((state.clients, state.server.server), ids)
    values = evaluate.personal(own, keys.purpose(state.key, "personal"), (), rows, world, lay)
    return {**report, **evaluate.spread(values, "personal_")}


def _personal(s: Setting) -> Callable[..., Tree]:
    """A node's own model from its row and its state."""

    def model(key, _, row, data):
        client, server = row
        return s.method.deploy(server) if s.method.personal is None else s.method.personal(key, server, client, data)

    return model


def _wide(mesh, tree: Tree) -> Tree:
    """Leaves [N, ...] with all nodes on each device, cut over the devices along another axis where one can be."""

    def one(x):
        cut, names = mesh.shape[meshes.CLIENTS], [None] * x.ndim
        axes = [a for a in range(1, x.ndim) if x.shape[a] % cut == 0]
        if axes:
            names[max(axes, key=lambda a: x.shape[a])] = meshes.CLIENTS
        return NamedSharding(mesh, P(*names))

    return meshes.constrain(tree, jax.tree.map(one, tree))


__all__ = ["Mixing", "Nodes", "among", "mix", "schedule", "seating"]
