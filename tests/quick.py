"""Programs that compile in a third of the time and run longer, for tests of what is computed and not of the compiler."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab.types import Simulation

QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


def quick(sim: Simulation, init: bool = True) -> Simulation:
    """The same simulation, compiled ahead for the types that its first state has: a state of other types is refused.

    init: also what makes the first state, which then differs in last digits from what is drawn outside of it.
    """
    start = sim.init.lower(sim.world, jax.random.key(0)).compile(compiler_options=QUICK) if init else sim.init
    args = sim.world, start(sim.world, jax.random.key(0)), jnp.int32(0), jnp.int32(1)
    return sim._replace(init=start, segment=sim.segment.lower(*args).compile(compiler_options=QUICK))
