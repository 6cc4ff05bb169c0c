"""Schedules on the virtual clock for the clients of the bench."""
from __future__ import annotations

import functools

import jax
import numpy as np

from fedjax_lab import registry, spec
from fedjax_lab.events import Fleet
from fedjax_lab.parts.schedules.replay import replay
from fedjax_lab.types import Participation


@functools.cache
def rolled(text: str, *, cohort: int = 6, rounds: int = 4, clients: int = 6, steps: int = 5, watched: bool = False) -> Participation:
    """A schedule as --schedule names it."""
    fleet = Fleet(jax.random.key(0), clients, cohort, rounds, np.full(clients, steps), watched)
    return replay(spec.build("schedule", text, registry.catalog("schedule"), fleet))
