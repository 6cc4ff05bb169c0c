"""Many runs as one program: seeds, and options that are numbers, are one more axis.

Runs are cut over the devices, so that a core trains its own and waits for nobody; on a device `width` of them go side by side, vmapped,
one such group after the other. A run inside is the program of a run alone on one device.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from fedjax_lab import tree
from fedjax_lab.engine import evaluate, sync
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine.setting import Schedule
from fedjax_lab.types import Adversary, Key, Method, Participation, Population, Record, Task, Tree

RUNS = "runs"
SMALL = 2**16  # parameters of a model of which a CPU core trains several at once: its products are too thin to fill the core
SIDE_BY_SIDE = 4  # of those; more were no faster, and leave the cache


class Batch(NamedTuple):
    """A method lowered to a program for many runs.

    world: everything that does not evolve, on all devices.
    run: (world, keys [n], values {option: [n]}) -> Record, every leaf [n, E, ...] for E evaluations, the first before any round;
        n is a multiple of devices x width.
    devices, width: how many runs go at the same time;  short: the width would be larger with more memory.
    small: whether a call with many runs is a short one.
    plan: what will run where, for people.
    costs: as of a Simulation.
    """

    world: Tree
    run: Callable[[Tree, Key, Mapping[str, jax.Array]], Record]
    devices: int
    width: int
    short: bool
    small: bool
    plan: Mapping[str, Any]
    costs: Callable[[], Sequence[Any]]
    fields: Callable[[], Sequence[str]]


def build(task: Task, method: Method, population: Population, participation: Participation, *, make: Callable[[Task, Mapping], Mapping],
          counts: Sequence[int], runs: int, room: Callable[[], float], mesh: Mesh, chunk: int, lanes: int, length: int,
          eval_clients: int | None = None, eval_batch: int = 500, width: int | None = None,
          schedule: Schedule | None = None, adversary: Adversary | None = None, **elsewhere: Any) -> Batch:
    """Lowers a method to a program for many runs of it.

    Args:
      task, method, population, participation, chunk, lanes, length, eval_clients, eval_batch, schedule, adversary: as for
        engine.sync.build; the method is that of any of the runs.
      elsewhere: its other arguments, which must be those by which everything is on the devices.
      make: (task, {option: traced scalar}) -> what a run with these options has of its own: the method, and the adversary where that
        depends on them.
      counts: rounds before each evaluation.
      runs: how many there are.
      room: bytes of memory to stay within, asked once the devices are known.
      mesh: its devices are used, each for whole runs.
      width: runs side by side on a device; by default what suits the device.
    """
    if elsewhere.get("streamed") or elsewhere.get("client_state", "device") != "device":
        raise ValueError("many runs at once need --population=device and --client_state=device")
    if jax.process_count() > 1 or mesh.shape[meshes.MODEL] > 1:
        raise ValueError("many runs at once need one process and --model_devices=1: each device trains whole runs")
    one = Mesh(mesh.devices.reshape(-1, 1)[:1], (meshes.CLIENTS, meshes.MODEL), axis_types=(AxisType.Auto,) * 2)
    many = Mesh(mesh.devices.flat[:runs], (RUNS,), axis_types=(AxisType.Auto,))
    s = sync.setting(task, method, population, participation, one, chunk, lanes, length, eval_batch, schedule=schedule, adversary=adversary)
    world = sync.world_of(s, population, evaluate.panel(population, eval_clients))
    shapes = jax.eval_shape(sync.program(s)[0], world, jax.random.key(0))
    plan, share = sync.plan(s, shapes, world), -(-runs // many.size)
    small, cpu = is_small(shapes.server), plan["platform"] == "cpu"
    each = plan["memory_bytes"] - tree.nbytes(world)
    fit = int(max(1, (room() / many.size - tree.nbytes(world)) // max(each, 1)))
    wanted = width or (share if not cpu else SIDE_BY_SIDE if small else 1)
    width = -(-share // -(-share // min(wanted, fit)))  # even groups
    clocks, counts = jnp.asarray(np.cumsum([0, *counts[:-1]]), jnp.int32), jnp.asarray(counts, jnp.int32)

    def single(world, key, values):
        start, segment = sync.program(s._replace(**make(task, values)))
        return jax.lax.scan(lambda state, when: segment(world, state, *when), start(world, key), (clocks, counts))[1]

    plan = {**plan, "devices": many.size, "side_by_side": width, "memory_bytes": many.size * (width * each + tree.nbytes(world))}
    world = meshes.place(world, meshes.replicated(many))
    costs = functools.cache(lambda: sync.costs(s, world, shapes))
    return Batch(world, across(single, many, width), many.size, width, fit < min(wanted, share), small, plan, costs,
                 functools.partial(sync.fields, s, world, shapes))


def across(single: Callable, mesh: Mesh, width: int) -> Callable:
    """(world, keys [n], values {option: [n]}) -> what `single` gives for each, stacked: cut over the mesh, `width` at a time."""

    def device(world, keys, values):
        def run(inputs):
            return single(world, *inputs)

        if width == 1:  # no vmap, see engine.clients
            return jax.lax.map(run, (keys, values))
        groups = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), (keys, values))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(jax.vmap(run), groups))

    return jax.jit(jax.shard_map(device, mesh=mesh, in_specs=(P(), P(RUNS), P(RUNS)), out_specs=P(RUNS), check_vma=False))


def is_small(server: Tree) -> bool:
    """Whether several runs at once suit a CPU core: few parameters, and no convolutions, which vmap makes slow grouped ones."""
    return tree.size(server) <= SMALL and all(len(leaf.shape) < 4 for leaf in jax.tree.leaves(server))
