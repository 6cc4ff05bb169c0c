"""Where the time of a device call goes: a JAX profiler trace, and its most expensive operations."""
from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import measure
from fedjax_lab import run

TOP = 10


class Operation(NamedTuple):
    """One operation of a program: all its executions on all threads or streams, without the operations inside it.

    calls: a piece on a thread of its own counts as one;  seconds: of all calls;  source: what it computes.
    """

    name: str
    source: str
    calls: int
    seconds: float
    share: float


class Event(NamedTuple):
    """One execution: begin and end in nanoseconds."""

    name: str
    begin: float
    end: float


def profile(prepared: run.Prepared, folder: pathlib.Path) -> list[Operation]:
    """The most expensive operations of a device call of one round, whose trace is left in the folder."""
    sim = prepared.simulation
    state = sim.init(sim.world, jax.random.key(prepared.config.seed))
    state, *_ = measure.segment(sim, state, 0, 1)
    state, *_ = record(folder, lambda: measure.segment(sim, state, 1, 1))
    arguments = (sim.world, state, jnp.int32(0), jnp.int32(0), jnp.bool_(False))
    program = sim.segment.lower(*arguments).compile().as_text() if hasattr(sim.segment, "lower") else ""
    return operations(folder, sources_of(program))


def record(folder: pathlib.Path, call: Callable[[], Any]) -> Any:
    """What `call` gives, with a trace of it left in the folder (for TensorBoard, XProf or Perfetto)."""
    with jax.profiler.trace(str(folder)):
        return jax.block_until_ready(call())


def operations(folder: pathlib.Path, sources: Mapping[str, str] = {}, top: int = TOP) -> list[Operation]:
    """The operations of the folder's newest trace with the most time of their own, the most expensive first.

    Args:
      folder: given to `record` before.
      sources: {operation: what it computes}, by `sources_of`.
      top: how many.

    Raises:
      ValueError: the trace holds no operation.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    data = jax.profiler.ProfileData.from_file(str(files[-1])) if files else None
    calls, seconds = collections.Counter(), collections.Counter()
    for line in (line for plane in (data.planes if data else ()) for line in plane.lines):
        for name, own in alone(_events(line)):
            calls[name] += 1
            seconds[name] += own / 1e9
    if not calls:
        raise ValueError(f"--profile: no operation in a trace of {folder}")
    whole = sum(seconds.values())
    return [Operation(name, sources.get(name, ""), calls[name], own, own / whole) for name, own in seconds.most_common(top)]


def _events(line: Any) -> list[Event]:
    """The operations on one thread or stream; the profiler marks them by `hlo_op`."""
    found = ((dict(event.stats).get("hlo_op"), event) for event in line.events)
    return [Event(str(name), event.start_ns, event.start_ns + event.duration_ns) for name, event in found if name]


def alone(events: Iterable[Event]) -> list[tuple[str, float]]:
    """(name, its nanoseconds without the events inside it) of every event of one thread: a loop's time is that of its body."""
    result, open_ = [], []
    for event in sorted(events, key=lambda e: (e.begin, -e.end)):
        while open_ and result[open_[-1]][2] <= event.begin:
            open_.pop()
        if open_:
            result[open_[-1]][1] -= min(event.end, result[open_[-1]][2]) - event.begin
        open_.append(len(result))
        result.append([event.name, event.end - event.begin, event.end])
    return [(name, own) for name, own, _ in result]


def sources_of(program: str) -> dict[str, str]:
    """{operation: the end of its `op_name`} from a compiled program's text."""
    found = re.findall(r'%?([\w.-]+) = [^\n]*?metadata=\{[^}\n]*?op_name="([^"]+)"', program)
    return {name: "/".join(source.split("/")[-3:]) for name, source in found}


def table(rows: Sequence[Operation]) -> str:
    """For people: one operation a line."""
    lines = [f"{'operation':<36} {'calls':>8} {'ms':>9} {'share':>6}  computes"]
    return "\n".join(lines + [f"{r.name:<36} {r.calls:>8} {1e3 * r.seconds:>9.3f} {r.share:>6.1%}  {r.source}" for r in rows])
