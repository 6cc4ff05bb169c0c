"""The devices of a run: one mesh axis `clients`, the same on CPU cores, a GPU and a pod."""
from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_lab.types import Tree

CLIENTS = "clients"


def make(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices (all by default), with an automatic axis `clients`.

    Raises:
      ValueError: if there are fewer devices, or their number is no power of two (lanes could not be dealt evenly).
    """
    available = jax.devices()
    count = 1 << (len(available).bit_length() - 1) if devices is None else devices
    if not 1 <= count <= len(available):
        raise ValueError(f"devices={count}: this process sees {len(available)} ({available[0].platform}); choose 1..{len(available)}")
    if count & (count - 1):
        choices = ", ".join(str(1 << i) for i in range(len(available).bit_length()))
        raise ValueError(f"devices={count}: lanes are dealt to a power of two of devices; choose {choices}")
    return Mesh(np.array(available[:count]), (CLIENTS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def dealt(mesh: Mesh) -> NamedSharding:
    """The leading axis is cut over the devices."""
    return NamedSharding(mesh, P(CLIENTS))


def constrain(tree: Tree, sharding: NamedSharding) -> Tree:
    """The sharding of every leaf, inside jit."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def varying(tree: Tree) -> Tree:
    """Inside shard_map: replicated values as each device's own, so that the gradient of one is not summed over the devices."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, CLIENTS, to="varying"), tree)
