"""The devices of a run: a mesh with axes `clients` and `model`, the same on CPU cores, a GPU and a pod of many hosts.

The cohort is dealt over `clients`. A model too large for one device is cut over `model`, which is left to the compiler: the program of
a client never mentions it. In a run of several processes each of them calls every function here, with the same values.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_lab.types import Tree

CLIENTS, MODEL = "clients", "model"


def make(devices: int | None = None, model: int = 1) -> Mesh:
    """A mesh over `devices` devices of all processes (all by default), `model` of them for each copy of the model, with automatic axes.

    Raises:
      ValueError: there are not so many devices, the copies are no power of two (lanes could not be dealt evenly), or the processes
        would not give the same number of devices each.
    """
    own = [[d for d in jax.devices() if d.process_index == p] for p in range(jax.process_count())]
    each = min(map(len, own))
    choices = [n for n in range(len(own), each * len(own) + 1, len(own)) if n % model == 0 and (n // model).bit_count() == 1]
    there = f"{each} {own[0][0].platform} devices" + f" in each of {len(own)} processes" * (len(own) > 1)
    if not choices:
        raise ValueError(f"model_devices={model}: there are {there}; cohorts are dealt to a power of two of models, in every process as many")
    count = choices[-1] if devices is None else devices
    if count not in choices:
        rule = "a power of two" + f" of models of {model}" * (model > 1)
        raise ValueError(f"devices={count}: there are {there}, and cohorts are dealt to {rule}; choose {', '.join(map(str, choices))}")
    chosen = [d for mine in own for d in mine[: count // len(own)]]
    return Mesh(np.array(chosen).reshape(-1, model), (CLIENTS, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def cut(mesh: Mesh, tree: Tree, *first: str | None) -> Tree:
    """A sharding per leaf: `first` names its leading axes (CLIENTS, or None for whole), `model` the largest other axis that it divides."""
    size = mesh.shape.get(MODEL, 1)

    def one(x: Any) -> NamedSharding:
        names: list[str | None] = [*first, *[None] * (x.ndim - len(first))]
        fits = [n if n % size == 0 else 0 for n in x.shape[len(first) :]]
        if size > 1 and max(fits, default=0):
            names[len(first) + fits.index(max(fits))] = MODEL
        return NamedSharding(mesh, P(*names))

    return jax.tree.map(one, tree)


def over(mesh: Mesh, body: Callable, **specs: Any) -> Callable:
    """`jax.shard_map` of a body over `clients`; on one device the body itself, which may then lie inside another mesh (engine.batch)."""
    return body if mesh.size == 1 else jax.shard_map(body, mesh=mesh, axis_names={CLIENTS}, **specs)


def constrain(tree: Tree, sharding: Tree) -> Tree:
    """The sharding of every leaf, one for all or a tree of them, inside jit."""
    if all(s.mesh.size == 1 for s in jax.tree.leaves(sharding)):
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding)


def varying(tree: Tree) -> Tree:
    """Inside shard_map: replicated values as each device's own, so that the gradient of one is not summed over the devices."""
    if CLIENTS not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, CLIENTS, to="varying"), tree)


def place(tree: Tree, sharding: Tree) -> Tree:
    """Host arrays as arrays of the mesh, by one sharding for all or a tree of them.

    Each process reads, of a mapped file too, only what its own devices hold, and nothing is compared or sent.
    """
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(_placed, tree, sharding)


def spread(mesh: Mesh, own: Tree) -> Tree:
    """Arrays of which every process has the rows [n / P, ...] of its own devices, in the order of the processes; see `joined`.

    A process alone has all of them, and gives them to every device at once. n is a multiple of the devices.
    """
    if jax.process_count() == 1:
        return place(own, replicated(mesh))
    sharding = NamedSharding(mesh, P((CLIENTS, MODEL)))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), own)


def joined(tree: Tree) -> Tree:
    """The same arrays, all of each on every device of its mesh. What is not there yet is sent by those who have it."""
    return jax.tree.map(lambda x: x if x.is_fully_replicated else _join(replicated(x.sharding.mesh))(x), tree)


@functools.cache
def _join(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    return jax.make_array_from_callback(x.shape, sharding, lambda at: np.asarray(x[at]))
