"""Many runs as one program: whole experiments are a batch axis.

    runs = many.train(seeds=range(8), sweep={"lr": (0.01, 0.03, 0.1)}, method="fedprox", rounds=100, options={"mu": 0.1})
    [run.history[-1]["test_accuracy"] for run in runs]

Seeds, and options of the method that are floats, are traced: runs that differ in nothing else share one program and one device call.
Whatever is static (integers, words, the method, fields of Config) makes a program of its own. The result of a run is that of the run
alone, bit for bit; but means that are reported may differ in the last bit where runs go side by side, and a swept option computes with
float32 where Python had computed with its own floats (`1 - beta`).
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import blend, platform, registry, run, schedules, spec
from fedjax_lab import config as configs
from fedjax_lab.config import Config
from fedjax_lab.types import Population, Record, Task

# fields of Config that leave clients and task as they are: runs that differ in these share them
APART = ("method", "seed", "rounds", "cohort", "participation", "eval_every", "eval_clients", "target_accuracy", "chunk", "lanes", "devices",
         "wire_up", "wire_down", "aggregator", "server", "attack", "privacy", "stats", "augment", "schedule", "graph", "allow_untested")
SHARE = 0.5  # of the memory that is free, for a call


class Trained(NamedTuple):
    """One of many runs.

    config: its own, with seed and options.
    history: one row per evaluation, as metrics.jsonl has them; "seconds" is the run's share of the device call.
    broken: "", or why the run broke off; its history then ends before.
    """

    config: Config
    history: list[dict[str, float]]
    broken: str = ""


class Many(NamedTuple):
    """A group of cells that share a program: names of the swept options, the caller's own task, what was prepared, runs in a call, and
    their branches where they are blended."""

    cells: Sequence[Config]
    names: Sequence[str]
    task: Task | None
    prepared: run.Prepared
    size: int
    branches: blend.Blend | None = None

    @property
    def batch(self):
        return self.prepared.simulation


def train(config: Config | None = None, *, seeds: Sequence[int] = (0, 1, 2), sweep: Mapping[str, Sequence[Any]] | None = None,
          task: str | Task | None = None, population: Population | None = None, at_once: int | None = None,
          report: Callable[[str], None] | None = None, **settings: Any) -> list[Trained]:
    """Trains one configuration with several seeds, and with every combination of the swept options.

    Args:
      config: the whole configuration, or else
      settings: fields of Config by name, for example method="fedprox", rounds=20, options={"lr": 0.05}.
      seeds: of the model, the cohorts and the training, instead of the configuration's own.
      sweep: {option of the method, or field of Config: values}; floats of the method cost no further compilation.
      task, population: by name, or one's own records.
      at_once: the most runs in one device call; see `each`.
      report: called with a line on every device call.

    Returns:
      One Trained per run: the last option varies fastest, and within each combination the seed. A run that breaks off (NaN, infinity)
      says so and does not disturb the others.

    Raises:
      ValueError: a setting is not valid; the line names it, its value and the valid ones.

    >>> runs = train(task="digits_logreg", clients=6, cohort=3, rounds=2, seeds=(0, 1), sweep={"lr": (0.1, 0.3)})
    >>> [(run.config.options["lr"], run.config.seed) for run in runs]
    [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]
    >>> all(run.history[-1]["test_loss"] < run.history[0]["test_loss"] for run in runs)
    True
    """
    own_task = None if isinstance(task, str) else task
    config = configs.make({"task": task if own_task is None else own_task.name, **settings}) if config is None else config
    cells = grid(config, seeds, sweep or {})
    found = {at: trained for at, _, trained in each(cells, task=own_task, population=population, at_once=at_once, report=report)}
    return [found[at] for at in range(len(cells))]


def grid(config: Config, seeds: Sequence[int], sweep: Mapping[str, Sequence[Any]]) -> list[Config]:
    """The configurations of a sweep: every combination of the values, the last option varies fastest, and each with every seed.

    Raises:
      ValueError: an option that neither the method nor Config has, or a value that is not valid.
    """
    own = [o.name for o in spec.options(spec.choose("method", config.method, registry.catalog("method")))]
    fields = [f.name for f in configs.fields()]
    for name in sweep:
        if name not in own and (name not in fields or name in ("method", "seed")):
            valid = spec.nearest(name, [*own, *[f for f in fields if f not in ("method", "seed")]])
            raise ValueError(f"'{config.method}' has no option '{name}' to sweep; valid: {valid}")
    plain, cells = {name: getattr(config, name) for name in fields}, []
    for point in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, point, strict=True))
        options = typed(config.method, {**config.options, **{k: v for k, v in chosen.items() if k in own}})
        other = {k: v for k, v in chosen.items() if k not in own}
        cells += [configs.make({**plain, **other, "options": options, "seed": seed}) for seed in seeds]
    return cells


def typed(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method, typed and checked."""
    return spec.bind(spec.choose("method", method, registry.catalog("method")), (), options, name=method)


def groups(cells: Sequence[Config], static: Sequence[str] = (), blended: bool = False) -> list[list[int]]:
    """Places of the cells that can share a program: those that differ in the seed and in floats of the method only, but for `static` ones;
    blended, in attack and aggregator too.

    A schedule on the virtual clock is rolled out for a seed, so seeds do not share one there; and a rate that does not decay is not
    multiplied by anything.
    """
    found: dict[str, list[int]] = {}
    for at, cell in enumerate(cells):
        shared = {k for k, v in cell.options.items() if isinstance(v, float) and k not in static and (k, v) != ("lr_decay", 1)}
        kinds = {k: "float" if k in shared else repr(v) for k, v in sorted(cell.options.items())}
        seed = cell.seed if schedules.rolled_out(cell) else 0
        like = blend.plain(cell) if blended else cell
        found.setdefault(repr(dataclasses.replace(like, seed=seed, options=kinds)), []).append(at)
    return list(found.values())


def each(cells: Sequence[Config], *, task: Task | None = None, population: Population | None = None, at_once: int | None = None,
         report: Callable[[str], None] | None = None, blended: bool = False) -> Iterator[tuple[int, run.Prepared, Trained]]:
    """Trains any configurations, those that can share a program in one, call by call.

    Args:
      cells: with typed options, as `grid` makes them.
      task, population, report: see `train`.
      at_once: the most runs in one device call; by default all of a small model on a CPU, else as many as run at the same time, so that
        little is lost when the process ends. Fewer where memory is short, which is reported.
      blended: attacks and aggregators are branches of one program, see `blend`. A mean then adds in another order than in a run alone.

    Yields:
      (place among the cells, what was prepared for the run, its result).
    """
    say, clients = report or (lambda line: None), {}
    waiting = groups(cells, (), blended)
    while waiting:
        places = waiting.pop(0)
        part = [cells[at] for at in places]
        data = tuple(getattr(part[0], f.name) for f in configs.fields() if f.name not in APART)
        many = _prepare(part, *clients.get(data, (task, population)), at_once, blended=blended)
        clients[data] = task, many.prepared.population
        static = untraceable(many)
        if static:
            say(f"{', '.join(static)} of {part[0].method}: Python code depends on the value, so each value has a program of its own")
            waiting = [[places[at] for at in found] for found in groups(part, static, blended)] + waiting
            continue
        for at, trained in _train(many, say):
            yield places[at], many.prepared._replace(config=part[at]), trained


def _prepare(cells: Sequence[Config], task: Task | None, population: Population | None, at_once: int | None, width: int | None = None,
             blended: bool = False) -> Many:
    from fedjax_lab.engine import batch

    first, branches = blend.plain(cells[0]) if blended else cells[0], blend.of(cells) if blended else None
    if blended and jax.default_backend() == "cpu":
        width = 1  # side by side, runs that take different branches would compute all of them

    def make(task, values):
        options = {k: v for k, v in values.items() if k in first.options}
        method = run.method_of(dataclasses.replace(first, options={**first.options, **options}), task)
        return blend.fields(branches, method, values) if blended else {"method": method}

    build = functools.partial(batch.build, make=make, counts=_counts(first), runs=min(len(cells), at_once or len(cells)), room=room,
                              width=width)
    prepared = run.prepare(first, task=task, population=population, build=build)
    found, step = prepared.simulation, prepared.simulation.devices * prepared.simulation.width
    size = min(len(cells), at_once or (len(cells) if found.small else step))
    size = -(-len(cells) // -(-len(cells) // size))  # even calls
    names = [k for k in first.options if len({cell.options[k] for cell in cells}) > 1]
    return Many(cells, names, task, prepared, -(-size // step) * step, branches)


def _counts(config: Config) -> list[int]:
    """Rounds before each evaluation of a run."""
    every = min(config.eval_every, config.rounds)
    return [0, *[min(every, config.rounds - clock) for clock in range(0, config.rounds, every)]]


def room() -> float:
    """Bytes of memory that a call may take."""
    return platform.room(SHARE)


def untraceable(many: Many) -> list[str]:
    """The swept options on whose values Python code depends."""

    def fails(names):
        try:
            jax.eval_shape(many.batch.run, many.batch.world, *_arguments(many, many.cells, names))
        except (TypeError, IndexError):  # of shapes and of slices; what else is wrong shows when values have programs of their own
            return True
        return False

    return [name for name in many.names if fails([name])] if many.names and fails(many.names) else []


def _arguments(many: Many, cells: Sequence[Config], names: Sequence[str]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Keys [size] and values {option: [size]}, the last run repeated; values are weakly typed, as Python's own floats are."""
    cells = [*cells, *[cells[-1]] * many.size][:many.size]
    keys = jnp.stack([jax.random.key(cell.seed) for cell in cells])
    branches = [blend.values(many.branches, cell) for cell in cells] if many.branches else [{}]
    taken = {name: jnp.stack([branch[name] for branch in branches]) for name in branches[0]}
    return keys, {name: jnp.stack([jnp.asarray(cell.options[name]) for cell in cells]) for name in names} | taken


def _train(many: Many, say: Callable[[str], None]) -> Iterator[tuple[int, Trained]]:
    """Runs the calls of a group, each with fewer runs where memory does not suffice."""
    done, program, spent = 0, None, run.spending(many.prepared)
    while done < len(many.cells):
        try:
            program = program or _compile(many, say)
            part = many.cells[done:done + many.size]
            start = time.perf_counter()
            record = jax.device_get(program(many.batch.world, *_arguments(many, part, many.names)))
        except jax.errors.JaxRuntimeError as error:
            smaller = _shrink(many) if "RESOURCE_EXHAUSTED" in str(error) else None
            if smaller is None:
                raise
            say(f"out of memory with {_how(many)}; goes on with {_how(smaller)}")
            many, program = smaller, None
            continue
        seconds = (time.perf_counter() - start) / len(part)
        say(f"{done + len(part)} of {len(many.cells)} runs of {many.cells[0].method}: {seconds * len(part):.1f} s")
        for i, cell in enumerate(part):
            yield done + i, read(cell, jax.tree.map(lambda x, i=i: x[i], record), seconds, spent, run.released(many.prepared))
        done += len(part)


def _compile(many: Many, say: Callable[[str], None]):
    start = time.perf_counter()
    program = many.batch.run.lower(many.batch.world, *_arguments(many, many.cells, many.names)).compile()
    say(f"{len(many.cells)} runs of {many.cells[0].method}, {_how(many)}; compiled in {time.perf_counter() - start:.1f} s")
    return program


def _how(many: Many) -> str:
    batch = many.batch
    short = ", memory is short for more" if batch.short else ""
    return f"{min(many.size, len(many.cells))} in a call, {batch.width} side by side on each of {batch.devices} {batch.plan['platform']} devices{short}"


def _shrink(many: Many) -> Many | None:
    """The same with half as many runs side by side, or else in a call; None where there is but one on each device."""
    if many.batch.width > 1:
        return _prepare(many.cells, many.task, many.prepared.population, many.size, many.batch.width // 2, many.branches is not None)
    return _prepare(many.cells, many.task, many.prepared.population, many.size // 2, 1, many.branches is not None) if many.size > many.batch.devices else None


def read(config: Config, record: Record, seconds: float, spent: Callable[[Mapping[str, Any]], int],
         told: Callable[[int], Mapping[str, Any]] = lambda rounds: {}) -> Trained:
    """The rows of one run from its records [E, ...]; `spent` and `told` as in run.advance."""
    now = run.Progress(())
    for at, count in enumerate(_counts(config)):
        elapsed, piece = seconds * (now.clock + count) / config.rounds, jax.tree.map(lambda x, at=at: x[at], record)
        try:
            now = run.advance(config, now._replace(seconds=elapsed), piece, count, spent, told)
        except run.Diverged as error:
            return Trained(config, list(now.history), str(error))
        if run.finished(config, now):
            break
    return Trained(config, list(now.history))


__all__ = ["Trained", "each", "grid", "groups", "read", "train"]
