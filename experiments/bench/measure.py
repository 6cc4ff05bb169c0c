"""Seconds a round, of the library and of what it is compared with, in one process."""
from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.reference import Setup
from fedjax_lab import run, workdir
from fedjax_lab.types import State

Paces = list[tuple[float, float]]  # of every round, seconds by the clock and of all processors
PLAN = ("clients", "cohort", "parameters")
MACHINE = ("platform", "devices", "chunk", "lanes")


def measure(prepared: run.Prepared, warmup: int, rivals: Mapping[str, Callable[[], Setup]] = {}) -> dict[str, Any]:
    """Compiles, warms up and times what was prepared; the result is ready for JSON.

    A device call trains eval_every rounds, without an evaluation. Rivals take turns with it: after every call each trains as many
    rounds, one call a round, waiting for each. Ratios are those of a pair, so that what slows the machine for a while cancels.

    Args:
      prepared: its config's rounds are timed.
      warmup: rounds trained before.
      rivals: what it is compared with, by name; made once the library's peak memory is known.
    """
    sim, rounds = prepared.simulation, prepared.config.rounds
    with cold():
        start = time.perf_counter()
        state = jax.block_until_ready(sim.init(sim.world, jax.random.key(prepared.config.seed)))
        state, *_ = segment(sim, state, 0, 0, due=True)
        compile_seconds = time.perf_counter() - start
    for clock, count in calls(0, warmup, sim.length):
        state, *_ = segment(sim, state, clock, count)
    state, _, evaluation = segment(sim, state, warmup, 0, due=True)
    memory = {"peak_rss_mb": peak_rss_mb(), **peak_device_mb()}
    others = {name: _first(make()) for name, make in rivals.items()}
    paces, examples, theirs = [], [], {name: [] for name in others}
    for clock, count in calls(warmup, rounds, sim.length):
        busy = time.process_time()
        state, record, seconds = segment(sim, state, clock, count)
        paces += [(seconds / count, (time.process_time() - busy) / count)] * count
        examples += examples_of(prepared, record, count)
        for name, other in others.items():
            busy = time.process_time()
            params, seconds = repeat(other, clock, count)
            others[name] = other._replace(params=params)
            theirs[name] += [(seconds / count, (time.process_time() - busy) / count)] * count
    state, record, _ = segment(sim, state, warmup + rounds, 0, due=True)
    (pace, busy), plan = np.median(paces, 0).tolist(), sim.plan
    return {
        "seconds_per_round": pace, "processor_seconds_per_round": busy,
        "compile_seconds": compile_seconds - evaluation, "evaluation_seconds": evaluation,
        "clients_per_second": plan["cohort"] / pace, "examples_per_second": float(np.mean(examples)) / pace, **memory,
        "test_accuracy": float(record.evaluation["test_accuracy"]), "rounds": rounds, "warmup": warmup,
        **{k: plan[k] for k in PLAN}, **machine(prepared),
        **{name: compared(paces, theirs[name], other) for name, other in others.items()},
    }


def machine(prepared: run.Prepared) -> dict[str, Any]:
    """Where a measurement was made, and how the work lay there."""
    plan = prepared.simulation.plan
    return {**{k: plan[k] for k in MACHINE}, "device_kind": jax.devices()[0].device_kind, "precision": prepared.config.precision,
            "versions": workdir.versions()}


def compared(ours: Paces, theirs: Paces, other: Setup) -> dict[str, float]:
    """The rival's pace, and how many times its time the library takes: the median of the pairs, the least and the most; and the median
    for the processors' time, which hardly depends on who else uses them."""
    ratios = np.array(ours) / np.array(theirs)
    (pace, _), (ratio, processor) = np.median(theirs, 0).tolist(), np.median(ratios, 0).tolist()
    return {"seconds_per_round": pace, "ratio": ratio, "ratio_least": float(ratios[:, 0].min()), "ratio_most": float(ratios[:, 0].max()),
            "processor_ratio": processor, "examples_per_round": other.examples}


def segment(sim, state: State, clock: int, count: int, due: bool = False) -> tuple[State, Any, float]:
    """One device call of `count` rounds, and an evaluation where it is due, with the seconds it took."""
    start = time.perf_counter()
    state, record = jax.block_until_ready(sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(count), jnp.bool_(due)))
    return state, record, time.perf_counter() - start


def repeat(other: Setup, clock: int, count: int) -> tuple[Any, float]:
    """The rival's parameters after `count` more rounds, with the seconds they took."""
    params, start = other.params, time.perf_counter()
    for i in range(count):
        params = jax.block_until_ready(other.round(params, jax.random.key(clock + i)))
    return params, time.perf_counter() - start


def _first(other: Setup) -> Setup:
    """The rival, compiled."""
    return other._replace(params=repeat(other, 0, 1)[0])


def calls(first: int, rounds: int, length: int) -> Iterator[tuple[int, int]]:
    """(clock, count) of the device calls that make up these rounds."""
    return ((clock, min(length, first + rounds - clock)) for clock in range(first, first + rounds, length))


def examples_of(prepared: run.Prepared, record: Any, count: int) -> list[int]:
    """Training examples of each round's cohort; every one is used once, since there is one epoch."""
    ids, mask = (np.asarray(record.rounds[k])[:count] for k in ("ids", "mask"))
    return np.where(mask, prepared.population.train.size[ids], 0).sum(1).tolist()


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Without compiled programs of earlier processes."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once whether to use the cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def peak_rss_mb() -> float:
    """The most memory this process has held on the host, in 1e6 bytes. Linux's getrusage also counts the parent's, before exec."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def forget_peak() -> None:
    """Has `peak_rss_mb` start anew from what is held now, where Linux lets a process do so."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_device_mb() -> dict[str, float]:
    """The most memory that a device of its own memory has held, in 1e6 bytes; nothing on a CPU, whose memory is the host's."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"peak_device_mb": max(peaks) / 1e6} if peaks else {}
