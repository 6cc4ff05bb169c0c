"""How one client's function becomes a cohort's: vmap within a chunk, a loop over chunks, the mesh over all.

Sums fold in lanes, so that the same bits come out on any number of devices. Slot s of the sorted cohort is dealt to device s mod D
and adds, in order, to lane s mod L. Lanes close by halving, l with l + L/2: with strided ownership the first halvings stay on a
device and the last log2 D cross the mesh, in the same tree for every D.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_lab.engine import mesh as meshes
from fedjax_lab.local import longest
from fedjax_lab.types import Streaming, Tree


class Layout(NamedTuple):
    """How S slots lie on the mesh: D devices (or groups that share a model) x `local` slots each, `chunk` of them at a time, L lanes in all."""

    mesh: Mesh
    slots: int
    chunk: int
    lanes: int

    @property
    def devices(self) -> int:
        return self.mesh.shape[meshes.CLIENTS]

    @property
    def local(self) -> int:
        return -(-self.slots // (self.devices * self.chunk)) * self.chunk

    def deal(self, x: jax.Array) -> jax.Array:
        """[S, ...] in slot order to [D * local, ...] in device order, padded with copies of the last slot."""
        pad = self.local * self.devices - self.slots
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (pad, *x.shape[1:]))]) if pad else x
        return x.reshape(self.local, self.devices, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    def filled(self, mask: jax.Array | None = None) -> jax.Array:
        """bool [D * local] in device order: which slots hold a client, given mask [S] (all by default)."""
        mask = jnp.ones(self.slots, bool) if mask is None else mask
        return self.deal(mask) & self.deal_padding()

    def deal_padding(self) -> jax.Array:
        """bool [D * local] in device order: False where `deal` padded."""
        real = jnp.arange(self.local * self.devices) < self.slots
        return real.reshape(self.local, self.devices).swapaxes(0, 1).reshape(-1)

    def collect(self, x: jax.Array) -> jax.Array:
        """The inverse of `deal`, padding dropped."""
        return x.reshape(self.devices, self.local, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)[: self.slots]


def layout(mesh: Mesh, slots: int, chunk: int, lanes: int) -> Layout:
    """A Layout with the chunk cut to what one device has.

    Raises:
      ValueError: if the lanes are no power of two or fewer than the devices.
    """
    devices = mesh.shape[meshes.CLIENTS]
    if lanes < devices or lanes & (lanes - 1):
        raise ValueError(f"lanes={lanes}: must be a power of two of at least the {devices} devices")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: choose 1..{-(-slots // devices)}")
    return Layout(mesh, slots, max(1, min(chunk, -(-slots // devices))), lanes)


class Outcome(NamedTuple):
    """What one client hands to the sweep: summands {field: (value, weight)}, its new row, and what is stacked."""

    summands: Mapping[str, tuple[Tree, Tree]]
    row: Tree
    stacked: Tree


def sweep(
    lay: Layout,
    body: Callable[[Tree, Tree, Tree], Outcome],
    rules: Mapping[str, Streaming],
    shared: Tree,
    slots: Tree,
    rows: Tree,
    mask: jax.Array,
) -> Outcome:
    """Runs `body(shared, slot, row)` for every slot of a cohort.

    Args:
      lay: where slots run.
      body: one client.
      rules: the streaming rule of every field that `body` puts into summands.
      shared: replicated arrays.
      slots, rows: trees of arrays [D * local, ...] in device order; rows are updated in place.
      mask: bool [D * local] in device order, where it is False the slot is empty; empty slots come last on each device.

    Returns:
      summands {field: aggregate}, replicated;  row and stacked: arrays [D * local, ...] in device order.
    """

    def device(shared, slots, rows, mask):
        shared = meshes.varying(shared)
        local_lanes = lay.lanes // lay.devices
        first = jax.eval_shape(body, shared, *_piece((slots, rows), 0))
        zeros = {f: _stack_zero(rules[f], first.summands[f], local_lanes) for f in rules}
        stacked = meshes.varying(jax.tree.map(lambda x: jnp.zeros((mask.shape[0], *x.shape), x.dtype), first.stacked))

        def chunk(i, carry):
            lanes, rows, stacked = carry
            start = i * lay.chunk
            piece = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, lay.chunk), (slots, rows))
            out = _map(body, shared, piece, lay.chunk)
            lanes = {f: _fold(rules[f], lanes[f], *out.summands[f], start, lay.chunk, local_lanes) for f in rules}
            put = lambda into, x: jax.lax.dynamic_update_slice_in_dim(into, x.astype(into.dtype), start, 0)
            return lanes, jax.tree.map(put, rows, out.row), jax.tree.map(put, stacked, out.stacked)

        filled = longest(-(-jnp.sum(mask, dtype=jnp.int32) // lay.chunk))  # chunks that a run beside this one fills are empty here
        lanes, rows, stacked = jax.lax.fori_loop(0, filled, chunk, (meshes.varying(zeros), rows, stacked))
        return {f: _close(rules[f], lanes[f]) for f in rules}, rows, stacked

    dealt, whole = P(meshes.CLIENTS), P()
    run = meshes.over(lay.mesh, device, in_specs=(whole, dealt, dealt, dealt), out_specs=(dealt, dealt, dealt))
    lanes, rows, stacked = run(shared, slots, rows, mask)
    lanes = meshes.constrain(lanes, meshes.cut(lay.mesh, lanes, None))
    sane = jnp.sum(mask, dtype=jnp.int32) >= 0
    closed = _fence(sane, {f: jax.tree.map(lambda x: x[0], _close(rules[f], lanes[f])) for f in rules})
    return Outcome(_fence(sane, {f: rules[f].finish(closed[f]) for f in rules}), rows, stacked)


def _fence(sane: jax.Array, tree: Tree) -> Tree:
    """The same values, out of reach of fusion. Otherwise the compiler may contract a product on one side with a sum on the other,
    and does so or not depending on the number of devices. `sane` always holds, which the compiler cannot know; it removes an
    optimization_barrier before it fuses."""
    return jax.lax.cond(sane, lambda t: t, lambda t: jax.tree.map(jnp.zeros_like, t), tree)


def _piece(tree: Tree, i: int) -> Tree:
    return jax.tree.map(lambda x: x[i], tree)


def _map(body, shared, piece, width):
    if width > 1:
        return jax.vmap(body, in_axes=(None, 0, 0))(shared, *piece)
    # no vmap at width one: convolutions would become grouped, and inner loops masked
    return jax.tree.map(lambda x: jnp.asarray(x)[None], body(shared, *_piece(piece, 0)))


def _stack_zero(rule: Streaming, like: tuple[Tree, Tree], lanes: int) -> Tree:
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), rule.zero(*blank))


def _fold(rule: Streaming, lanes: Tree, value: Tree, weight: Tree, start, chunk: int, local_lanes: int) -> Tree:
    """Adds the slots of a chunk to their lanes, in slot order; as many at once as lie on distinct lanes."""
    width = math.gcd(chunk, local_lanes)

    def group(g, lanes):
        lane = (start + g * width) % local_lanes
        cut = lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, width)
        old = jax.tree.map(lambda x: cut(x, lane), lanes)
        new = jax.vmap(rule.add)(old, *jax.tree.map(lambda x: cut(x, g * width), (value, weight)))
        return jax.tree.map(lambda x, n: jax.lax.dynamic_update_slice_in_dim(x, n, lane, 0), lanes, new)

    return jax.lax.fori_loop(0, chunk // width, group, lanes) if chunk > width else group(0, lanes)


def _close(rule: Streaming, lanes: Tree) -> Tree:
    count = jax.tree.leaves(lanes)[0].shape[0]
    while count > 1:
        count //= 2
        lanes = jax.vmap(rule.merge)(*(jax.tree.map(lambda x, at=at, count=count: x[at : at + count], lanes) for at in (0, count)))
    return lanes
