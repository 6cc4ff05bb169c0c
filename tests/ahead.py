"""A simulation compiled ahead for the types of its first state, so that whatever is computed with it shows that one program serves."""
from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from fedjax_lab.types import Simulation

FOR_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # what conftest.py turns off


def environment_of_users() -> dict[str, str]:
    """Of a process that compiles as for users, and has no data beside what is embedded."""
    return {k: v for k, v in os.environ.items() if k not in ("FEDJAX_LAB_DATA", "XLA_FLAGS")}


def ahead(sim: Simulation, init: bool = True, options: dict | None = None) -> Simulation:
    """The same simulation, which refuses a state of other types.

    init: also what makes the first state, which then differs in last digits from what is drawn outside of it.
    options: of the compiler.
    """
    start = sim.init.lower(sim.world, jax.random.key(0)).compile(options) if init else sim.init
    args = sim.world, start(sim.world, jax.random.key(0)), jnp.int32(0), jnp.int32(1)
    return sim._replace(init=start, segment=sim.segment.lower(*args).compile(options))
