"""Uploads on the virtual clock: fedbuff by the library, against an event loop in Python that trains one client at a time.

Both take 10,000 uploads of a small model, 100 clients in training, a buffer of 10 and half-normal times, from 1,000 clients of 10 generated
examples of 64 numbers. The library's time includes rolling out the schedule; compilation is in neither. The loop shares nothing with the
library but the data: a heap of who is done when, the model that each was sent, one jitted call that trains a client and adds its change
to the buffer, and one that empties the buffer.
"""
from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import measure, reference
from fedjax_lab import config as configs
from fedjax_lab import run, schedules

UPLOADS, FLYING, BUFFER, CLIENTS, SIZE, DIM, LR, BETA = 10_000, 100, 10, 1_000, 10, 64, 0.1, 0.9
TURNS = 5  # in which both take turns, so that what else the machine does falls on both


def configure(uploads: int, given: dict[str, str]) -> configs.Config:
    """The library's run, with flags of the benchmark."""
    options = {"lr": LR, "epochs": 1, "batch_size": 10, "server_lr": 1 - BETA, "beta": BETA}
    rounds = uploads // BUFFER
    return configs.make({"chunk": BUFFER, "devices": 1, **given, "method": "fedbuff", "schedule": f"buffered:{BUFFER},law=halfnormal", "options": options,
                         "task": f"crowd_logreg:clients={CLIENTS},size={SIZE},dim={DIM}", "cohort": FLYING, "rounds": rounds, "eval_every": rounds // TURNS,
                         "eval_clients": 1})


def compare(uploads: int, given: dict[str, str]) -> dict[str, Any]:
    """Seconds of both, and how many times as long the loop takes, by the clock and by the processors' time."""
    config = configure(uploads, given)
    prepared = run.prepare(config)
    sim = prepared.simulation
    measure.segment(sim, sim.init(sim.world, jax.random.key(config.seed)), 0, 1)  # the first call is not timed
    state = sim.init(sim.world, jax.random.key(config.seed))
    _, rolled = _timed(lambda: schedules.timed(config, prepared.method, prepared.population))
    train = prepared.population.train
    loop = Loop(np.asarray(train.examples["x"]).reshape(-1, DIM), np.asarray(train.examples["y"]), np.asarray(train.offset), config.seed)
    loop.run(2 * FLYING)  # compiles
    ours, theirs, heard = rolled, np.zeros(2), 0
    for turn in range(TURNS):
        (state, record, _), spent = _timed(lambda state=state, turn=turn: measure.segment(sim, state, turn * sim.length, sim.length))
        ours, heard = ours + spent, heard + int(record.rounds["heard"].sum())
        params, spent = _timed(lambda: jax.block_until_ready(loop.run(uploads // TURNS)))
        theirs += spent
    assert heard == uploads
    return {"uploads": uploads, "in_training": FLYING, "buffer": BUFFER, "parameters": sim.plan["parameters"], "seconds": ours[0],
            "of_which_rolling_out": rolled[0], "loop_seconds": theirs[0], "ratio": theirs[0] / ours[0], "processor_ratio": theirs[1] / ours[1],
            "peak_rss_mb": measure.peak_rss_mb(), "loop_norm": float(sum(jnp.sum(p**2) for p in jax.tree.leaves(params))), **measure.machine(prepared)}


def _timed(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What it gives, and the seconds and processor seconds it took."""
    start = np.array([time.perf_counter(), time.process_time()])
    return work(), np.array([time.perf_counter(), time.process_time()]) - start


class Loop:
    """The plain event loop on examples x [M, DIM], y [M], of which client i owns SIZE from offset[i]."""

    def __init__(self, x: np.ndarray, y: np.ndarray, offset: np.ndarray, seed: int):
        self.x, self.y, self.offset, self.seed = jnp.asarray(x), jnp.asarray(y), offset, seed
        self.first = reference.init(jax.random.key(seed), [(DIM, int(y.max()) + 1)])

    def run(self, uploads: int) -> reference.Params:
        """The model after so many uploads."""
        rng, key = np.random.default_rng(self.seed), jax.random.key(self.seed)
        w, m = self.first, jax.tree.map(jnp.zeros_like, self.first)
        version, buffer, held, number = 0, m, 0, itertools.count()
        idle, flying = set(range(CLIENTS)), []

        def start(now: float) -> None:
            client = int(rng.integers(CLIENTS))
            while client not in idle:
                client = int(rng.integers(CLIENTS))
            idle.remove(client)
            heapq.heappush(flying, (now + abs(rng.standard_normal()), next(number), client, version, w))

        for _ in range(FLYING):
            start(0.0)
        for done in range(uploads):
            now, _, client, base, sent = heapq.heappop(flying)
            weight = (1 + version - base) ** -0.5
            buffer = _arrive(buffer, sent, self.x, self.y, int(self.offset[client]), jax.random.fold_in(key, done), weight)
            idle.add(client)
            held += 1
            if held == BUFFER:
                w, m = _serve(w, m, buffer)
                buffer, held, version = jax.tree.map(jnp.zeros_like, w), 0, version + 1
            start(now)
        return w


@jax.jit
def _arrive(buffer, sent, x, y, first, key, weight):
    y_i = reference.update(sent, x, y, first + jnp.arange(SIZE), key, 10, LR)
    return jax.tree.map(lambda b, new, old: b + weight * (new - old), buffer, y_i, sent)


@jax.jit
def _serve(w, m, buffer):
    m = jax.tree.map(lambda m, b: BETA * m + b / BUFFER, m, buffer)
    return jax.tree.map(lambda w, m: w + (1 - BETA) * m, w, m), m
