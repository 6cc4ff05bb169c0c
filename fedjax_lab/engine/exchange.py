"""One exchange of a round: message down, one client's work, upload, through the wires of both ways and into the rules."""
from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys, rules, tree
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.types import ClientData, Cohort, Fresh, Key, Phase, Stacked, Streaming, Tree, Wire


class Start(NamedTuple):
    """When a client started: base, staleness, factor and latest of its Draw and ClientData, scalars and [K + 1] or ()."""

    base: jax.Array
    staleness: jax.Array
    factor: jax.Array
    latest: Tree = ()


class Slot(NamedTuple):
    """One place in a cohort.

    id: who sits there;  at: that client's place in the population's streams;  allowance: how many steps it may take;
    mask: whether it starts;  heard: whether its upload arrives;  present: whether it was drawn for the round;
    keep: what it kept from the phase before;  start: (), or when it started, where that was not in this round.
    """

    id: jax.Array
    at: jax.Array
    allowance: jax.Array
    mask: jax.Array
    heard: jax.Array
    present: jax.Array
    keep: Tree = ()
    start: Start | tuple[()] = ()


class Trace(NamedTuple):
    """What a client leaves behind per slot, besides its row.

    fields: {field: (value, weight)} of stacked fields;  keep: for the next phase;  metrics: scalars;
    bytes_up, bytes_down: uint32;  finite: False where a metric holds NaN or infinity; without a
    "loss" among them the upload is looked at too.
    """

    fields: Mapping[str, tuple[Tree, Tree]]
    keep: Tree
    metrics: Mapping[str, jax.Array]
    bytes_up: jax.Array
    bytes_down: jax.Array
    finite: jax.Array


Begin = Callable[[tuple, Slot], tuple[Tree, Key, jax.Array]]
"""(shared, slot) -> (server, round key, clock) that a client starts from."""

Later = Callable[[tuple, Slot, jax.Array], tuple[Tree, jax.Array]]
"""(shared, slot, steps) -> (server, clock) that there are when a client has done so many local steps."""

View = Callable[[Tree, Slot, jax.Array], ClientData]
"""(world, slot, clock) -> ClientData."""

Forge = Callable[..., Tree]
"""(stack, weight, cohort, rule) -> stack, where rule is (stack) -> aggregate."""


def run(lay: sweeps.Layout, phase: Phase, name: str, view: View, shared: tuple, slots: Slot, rows: Tree,
        begin: Begin = lambda shared, slot: shared[1:], held: Collection[str] = (), later: Later | None = None) -> sweeps.Outcome:
    """One phase over a cohort.

    Args:
      lay: where slots run.
      phase: what each client does.
      name: the purpose of the phase's randomness.
      view: makes a client's data.
      shared: (world, ...), the rest is what `begin` reads.
      slots, rows: in device order; rows are (client rows, {field: wire rows}).
      begin: see Begin; by default shared is (world, server, round key, clock), the same for all.
      held: fields that are stacked whatever their rule.
      later: see Later; by default there is nothing but what was sent.

    Returns:
      summands: aggregates of the streaming fields;  row: new rows;  stacked: a Trace per slot. All in device order.
    """

    @functools.partial(jax.jit, inline=True)  # its shapes are asked for twice before it runs: one trace serves all
    def body(shared, slot: Slot, row):
        world, (server, key, clock) = shared[0], begin(shared, slot)
        own, memory = row
        key = keys.purpose(keys.for_client(key, slot.id), name)
        data = view(world, slot._replace(allowance=jnp.where(slot.mask, slot.allowance, 0)), clock)
        message, down, _ = transmit(phase.down, keys.purpose(key, "down"), phase.broadcast(server, slot.id, clock), {})
        asked = []

        def download(steps):
            newer, then = (server, clock) if later is None else later(shared, slot, steps)
            fresh, size, _ = transmit(phase.down, keys.purpose(key, "again"), phase.broadcast(newer, slot.id, then), {})
            asked.append(jnp.where(then > clock, size, 0))  # of what it has a client need not be told
            return Fresh(then, fresh)

        result = phase.local(keys.purpose(key, "local"), message, own, data._replace(download=download))
        down = sum(asked, down)
        heard, up, memory = transmit(phase.up, keys.purpose(key, "up"), result.upload, memory)
        weights = {f: jax.tree.map(lambda w: jnp.where(slot.heard, w, 0).astype(jnp.float32), weight_of(result, f)) for f in heard}
        streamed, fields = {}, {}
        for f, value in heard.items():
            (streamed if f not in held and isinstance(rule_of(phase, f), Streaming) else fields)[f] = (value, weights[f])
        # a pass over each upload would keep it from being added as it is made; what a loss does not show, the aggregate does
        watched = dict(result.metrics) if "loss" in result.metrics else (heard, dict(result.metrics))
        finite = tree.finite(watched) | ~slot.heard
        charge = jnp.where(slot.heard, up, 0), jnp.where(slot.mask, down, 0)
        return sweeps.Outcome(streamed, (result.client, memory), Trace(fields, result.keep, dict(result.metrics), *charge, finite))

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (slots, rows))
    streaming = {f: rule_of(phase, f) for f in jax.eval_shape(body, shared, *one).summands}
    return sweeps.sweep(lay, body, streaming, shared, slots, rows, slots.mask)


def aggregates(lay: sweeps.Layout, phase: Phase, out: sweeps.Outcome, cohort: Cohort, forge: Mapping[str, Forge] = {}) -> Mapping[str, Tree]:
    """{field: aggregate}: the streamed ones as they are, the stacked ones through their rule, in slot order.

    forge: {field: what changes its stack before the rule sees it, where there is one}.
    """
    stacks = {f: jax.tree.map(lay.collect, stack) for f, stack in out.stacked.fields.items()}
    stacks = meshes.constrain(stacks, meshes.cut(lay.mesh, stacks, None))  # a sum over a cut cohort would depend on the devices
    found = dict(out.summands)
    for f, (value, weight) in stacks.items():
        rule = functools.partial(combine, lay, rule_of(phase, f), weight=weight, cohort=cohort)
        found[f] = rule(forge[f](value, weight, cohort, rule) if f in forge else value)
    return found


def combine(lay: sweeps.Layout, rule: Streaming | Stacked, stack: Tree, weight: Tree, cohort: Cohort) -> Tree:
    """The aggregate of a stack [S, ...] in slot order; a streaming rule adds it up in the lanes of a cohort that was not stacked."""
    if isinstance(rule, Stacked):
        return rule.combine(stack, weight, cohort)

    def body(shared, slot, row):
        return sweeps.Outcome({"": slot}, (), ())

    dealt = jax.tree.map(lay.deal, (stack, weight))
    return sweeps.sweep(lay, body, {"": rule}, (), dealt, (), lay.filled(cohort.mask)).summands[""]


def rule_of(phase: Phase, field: str):
    """The field's aggregation rule, by default the weighted mean."""
    return phase.aggregate.get(field, rules.mean())


def weight_of(result: Any, field: str) -> Tree:
    """The weight of one field."""
    return result.weight[field] if isinstance(result.weight, Mapping) else result.weight


def plain(phase: Phase, server: Tree, data: ClientData) -> ClientData:
    """What `local` sees of a client that finds nothing new when it asks in mid-training."""
    return data._replace(download=lambda steps: Fresh(data.clock, phase.broadcast(server, data.id, data.clock)))


def transmit(wires: Mapping[str, Wire], key: Key, message: Mapping[str, Tree], memory: Mapping[str, Tree]):
    """Every field through its wire: (what arrives, the message's bytes uint32, the sender's new memories)."""
    arrived, size, rows = {}, 0, {}
    for field, value in message.items():
        wire = wires.get(field, rules.identity())
        code, row = wire.encode(keys.purpose(key, field), value, memory[field] if field in memory else wire.init(value))
        arrived[field] = wire.decode(code)
        size = size + -(-wire.bits(code) // 8)
        if field in memory:
            rows[field] = row
    return arrived, jnp.asarray(size, jnp.uint32), rows
