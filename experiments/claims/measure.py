"""Runs a claim: chooses both sides' rates on seeds of their own, then measures both on the recorded seeds."""
from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments.claims.records import Claim, Metric, Row, Scenario, Side
from fedjax_lab import config as configs
from fedjax_lab import many, run, workdir
from fedjax_lab.config import Config
from fedjax_lab.types import Population, Task

EXTENSIONS = 4  # rates that a grid may grow beyond an end
AT_ONCE = 8  # runs in a call, so that a grid that grew finds its program in the compilation cache
Rates = Mapping[str, float]


class Chosen(NamedTuple):
    """rates: the best of a grid.  tried: {rates as text: mean metric}.  edges: options whose best rate is still at the end of its grid."""

    rates: Rates
    tried: Mapping[str, float]
    edges: tuple[str, ...]


class Measured(NamedTuple):
    """values: the metric per seed, infinitely bad where a run broke off.  megabytes: up and down in one run."""

    values: list[float]
    megabytes: float

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)


class Known(NamedTuple):
    """What claims that are measured one after the other share: a run that two of them ask for is trained once.

    made: {what it follows from: clients, or a task};  runs: {what it follows from: the evaluations of a run}.
    """

    made: dict[Hashable, Any]
    runs: dict[Hashable, list[Row]]

    def clients(self, scenario: Scenario, side: Side) -> tuple[Task, Population]:
        """The task and the clients of a scenario, or this side's own: where its settings deal the data in another way, or of its own task."""
        flags = scenario.clients is None or "partition" in side.settings
        origin = repr({**scenario.settings, **side.settings}) if flags else scenario.clients
        task, people = self._once((origin, scenario.double), (lambda: dealt(scenario, side)) if flags else scenario.clients)
        return (self._once((side.task, id(people)), lambda: side.task(people)), people) if side.task else (task, people)

    def train(self, cells: Sequence[Config], clients: tuple[Task, Population], metric: Metric) -> list[list[Row]]:
        """As the function does; clients are those that were made here, whose identity is theirs for good."""
        keys = [(repr(cell), *map(id, clients), metric.probe, metric.run) for cell in cells]
        fresh = {key: cell for key, cell in zip(keys, cells, strict=True) if key not in self.runs}
        self.runs.update(zip(fresh, train([*fresh.values()], clients, metric), strict=True))
        return [self.runs[key] for key in keys]

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def nothing() -> Known:
    return Known({}, {})


def train(cells: Sequence[Config], clients: tuple[Task, Population], metric: Metric) -> list[list[Row]]:
    """The evaluations of each run, none of one that broke off; runs that differ in seeds and rates alone share a program."""
    if metric.run is not None:
        return [list(metric.run(cell)) for cell in cells]
    task, population = clients
    if metric.probe is not None:
        return [_probed(cell, task, population, metric) for cell in cells]
    found = {place: trained for place, _, trained in many.each(cells, task=task, population=population, at_once=AT_ONCE)}
    return [[] if found[i].broken else found[i].history for i in range(len(cells))]


def _probed(cell: Config, task: Task, population: Population, metric: Metric) -> list[Row]:
    """The evaluations of one run with what the metric's probe finds, none if it broke off."""
    prepared = run.prepare(cell, task=task, population=population)
    find = metric.probe(prepared)
    try:
        return [{**now.row, **find(now.state, now.clock)} for now in run.rounds(prepared) if now.row]
    except run.Diverged:
        return []


def cells(scenario: Scenario, side: Side, points: Sequence[Rates], seeds: Sequence[int], quick: bool = False) -> list[Config]:
    """The configurations of one side, every point of rates with every seed."""
    settings = {"devices": 1, **scenario.settings, **side.settings, **(scenario.quick if quick else {}), "method": side.method}
    options = {**scenario.options, **side.options}
    return [configs.make({**settings, "options": {**options, **rates}, "seed": seed}) for rates in points for seed in seeds]


def dealt(scenario: Scenario, side: Side) -> tuple[Task, Population]:
    """The task and the clients that the flags of one side make."""
    first = {option: grid[0] for option, grid in side.rates.items()}
    prepared = run.prepare(*cells(scenario, side, [first], [0]))
    return prepared.task, prepared.population


def measure(metric: Metric, runs: Sequence[Sequence[Row]]) -> Measured:
    """The metric of every run."""
    values = [metric.value(rows) if rows else math.nan for rows in runs]
    traffic = [rows[-1]["bytes_up"] + rows[-1]["bytes_down"] for rows in runs if rows]
    return Measured([metric.worst if math.isnan(v) else v for v in values], max(traffic, default=0) / 1e6)


def choose(grids: Mapping[str, tuple[float, ...]], score: Callable[[list[Rates]], list[float]], higher: bool,
           valid: Callable[[Rates], bool] = lambda rates: True) -> Chosen:
    """The best rates of the product of grids; a grid whose best is at its end grows there, by its own ratio, and at both where all is lost,
    as long as the rate is valid."""
    grids = {option: sorted(grid) for option, grid in grids.items()}
    left = dict.fromkeys(itertools.product(grids, (0, -1)), EXTENSIONS)
    tried: dict[tuple[float, ...], float] = {}
    while True:
        fresh = [point for point in itertools.product(*grids.values()) if point not in tried]
        tried.update(zip(fresh, score([dict(zip(grids, point, strict=True)) for point in fresh]), strict=True))
        point = _best(tried, grids, higher)
        best, hopeless = dict(zip(grids, point, strict=True)), math.isinf(tried[point])
        ends = [(option, end) for option, end in left if hopeless or best[option] == grids[option][end]]
        growing = [side for side in ends if left[side]]
        if not growing:
            text = {", ".join(f"{o}={x:g}" for o, x in zip(grids, point, strict=True)): value for point, value in sorted(tried.items())}
            return Chosen(best, text, tuple(dict.fromkeys(option for option, _ in ends)))
        for option, end in growing:
            grid = grids[option]
            more = float(f"{grid[end] ** 2 / grid[1 if end == 0 else -2]:.3g}")
            left[option, end] -= 1
            if valid({option: more}):
                grid.insert(0 if end == 0 else len(grid), more)
            else:
                left[option, end] = 0


def _best(tried: Mapping[tuple, float], grids: Mapping[str, list[float]], higher: bool) -> tuple:
    """The best point; of equals the one nearest the middle of the grids."""

    def badness(point):
        middle = sum(abs(grid.index(x) - (len(grid) - 1) / 2) for grid, x in zip(grids.values(), point, strict=True))
        return -tried[point] if higher else tried[point], middle

    return min(tried, key=badness)


def tune(claim: Claim, side: Side, known: Known) -> Chosen:
    """The best rates of a side by the claim's own metric, on the tuning seeds."""
    if not side.rates:
        return Chosen({}, {}, ())
    clients = known.clients(claim.scenario, side)

    def score(points: list[Rates]) -> list[float]:
        runs = known.train(cells(claim.scenario, side, points, claim.tuning), clients, claim.metric)
        share = len(claim.tuning)
        return [measure(claim.metric, runs[i:i + share]).mean for i in range(0, len(runs), share)]

    def valid(rates: Rates) -> bool:
        try:
            many.typed(side.method, rates)
        except ValueError:
            return False
        return True

    return choose(side.rates, score, claim.metric.higher, valid)


def gain(claim: Claim, method: float, baseline: float) -> float:
    """How much better the method is; a baseline that did not get there counts as getting there in the last round."""
    if claim.metric.in_rounds and math.isinf(baseline) and math.isfinite(method):
        baseline = claim.scenario.settings["rounds"]
    return claim.margin.gain(method, baseline, claim.metric.higher)


def record(claim: Claim, known: Known | None = None) -> dict[str, Any]:
    """Runs a claim and returns its row of CLAIMS.json.

    Args:
      known: what it may share with other claims; its "seconds" are those that it took beyond that.
    """
    known, start = nothing() if known is None else known, time.perf_counter()
    with jax.enable_x64(claim.scenario.double):
        chosen = [tune(claim, side, known) for side in (claim.method, claim.baseline)]
        measured = _compare(claim, known, [c.rates for c in chosen], claim.seeds)
    return _row(claim, chosen, measured, time.perf_counter() - start)


def quick(claim: Claim, rates: tuple[Rates, Rates], known: Known | None = None) -> tuple[float, float, float]:
    """Measured, baseline_measured and gain of one seed at these rates."""
    with jax.enable_x64(claim.scenario.double):
        method, baseline = _compare(claim, nothing() if known is None else known, rates, claim.seeds[:1], quick=True)
    return method.mean, baseline.mean, gain(claim, method.mean, baseline.mean)


def _compare(claim: Claim, known: Known, rates: Sequence[Rates], seeds: Sequence[int], quick: bool = False) -> list[Measured]:
    sides = zip((claim.method, claim.baseline), rates, strict=True)
    return [measure(claim.metric, known.train(cells(claim.scenario, side, [r], seeds, quick), known.clients(claim.scenario, side), claim.metric))
            for side, r in sides]


def _row(claim: Claim, chosen: Sequence[Chosen], measured: Sequence[Measured], seconds: float) -> dict[str, Any]:
    method, baseline = measured
    better = gain(claim, method.mean, baseline.mean)
    sides = dict(zip(("method", "baseline"), zip((claim.method, claim.baseline), chosen, measured, strict=True), strict=True))
    return {
        "claim": claim.name,
        "method": claim.method.method,
        "baseline": claim.baseline.method,
        "scenario": claim.scenario.text,
        "reduced": claim.scenario.reduced,
        "metric": claim.metric.name,
        "expected": claim.margin.words(claim.metric.higher),
        "measured": method.mean,
        "baseline_measured": baseline.mean,
        "gain": better,
        "shown": better >= claim.margin.least,
        "seeds": list(claim.seeds),
        "per_seed": {name: m.values for name, (_, _, m) in sides.items()},
        "shared": dict(claim.scenario.options),
        "options": {name: {**claim.scenario.options, **side.options, **c.rates} for name, (side, c, _) in sides.items()},
        "settings": {**claim.scenario.settings, **{name: dict(side.settings) for name, (side, _, _) in sides.items() if side.settings}},
        "tuning": {name: {"seeds": list(claim.tuning), "tried": c.tried, "at_edge": list(c.edges)} for name, (_, c, _) in sides.items() if c.tried},
        "megabytes": {name: m.megabytes for name, (_, _, m) in sides.items()},
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
        "versions": workdir.versions(),
    }
