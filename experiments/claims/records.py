"""What a claim is made of: two sides, a scenario, a metric, a margin."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fedjax_lab.config import Config
from fedjax_lab.run import Prepared
from fedjax_lab.types import Population, State, Task

Row = Mapping[str, float]  # one evaluation, as fedjax_lab.run.rounds yields it

RATES = (0.01, 0.0316, 0.1, 0.316, 1.0)
FINE = (0.0005, 0.001, 0.002, 0.004, 0.008)  # for bowls, whose best rates are small and sharp
TUNED = MappingProxyType({"lr": RATES})


class Side(NamedTuple):
    """One of the two that are compared.

    method, options: by name, with what is not its default.
    rates: {option: grid} of what is tuned, both sides from one grid; {} takes the options as they are.
    settings: fields of Config in which this side differs from the scenario (another participation).
    task: (population) -> the task, where this side's model is another than the scenario's.
    """

    method: str
    options: Mapping[str, Any] = MappingProxyType({})
    rates: Mapping[str, tuple[float, ...]] = TUNED
    settings: Mapping[str, Any] = MappingProxyType({})
    task: Callable[[Population], Task] | None = None

    @property
    def label(self) -> str:
        """The method with its options, as a table shows it."""
        shown = ", ".join(f"{k}={v}" for k, v in {**self.options, **self.settings}.items())
        return f"{self.method} ({shown})" if shown else self.method


class Scenario(NamedTuple):
    """On what both sides are trained.

    text: in words, for the table.
    settings: fields of Config, without method, options and seed.
    options: method options that both sides share (local_steps, batch_size).
    clients: () -> (task, population), where no flag says it.
    quick: settings of --quick, where the whole scenario takes more than three minutes.
    reduced: what the card has instead, where this is less.
    double: float64 throughout.
    """

    text: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = MappingProxyType({})
    clients: Callable[[], tuple[Task, Population]] | None = None
    quick: Mapping[str, Any] = MappingProxyType({})
    reduced: str = ""
    double: bool = False


class Metric(NamedTuple):
    """A number made of a run's evaluations.

    value: (evaluations) -> number, infinite for what was not reached within the rounds.
    higher: whether more is better.
    in_rounds: it counts rounds: a baseline that did not get there is taken to get there in the last round.
    probe: (prepared) -> (state, round) -> more columns of the evaluation after that round, for what evaluations do not say.
    run: (config) -> evaluations, where nothing is trained; each with "round", "bytes_up" and "bytes_down".
    """

    name: str
    value: Callable[[Sequence[Row]], float]
    higher: bool
    in_rounds: bool = False
    probe: Callable[[Prepared], Callable[[State, int], Mapping[str, float]]] | None = None
    run: Callable[[Config], Sequence[Row]] | None = None

    @property
    def worst(self) -> float:
        """What a run that broke off counts as."""
        return -math.inf if self.higher else math.inf


class Margin(NamedTuple):
    """By how much the method must be better: `least` more (by = plus), or `least` times (by = times); negative where less will do."""

    by: Literal["plus", "times"]
    least: float

    def gain(self, method: float, baseline: float, higher: bool) -> float:
        """How much better the method is: a difference, or a ratio of at most 1e12; infinite where only the baseline broke off."""
        if method == baseline:
            return 0.0 if self.by == "plus" else 1.0
        good, bad = (method, baseline) if higher else (baseline, method)
        return good - bad if self.by == "plus" else min(good / bad if bad > 0 else math.inf, 1e12)

    def words(self, higher: bool) -> str:
        """The expectation as a person reads it."""
        better, worse = ("higher", "lower") if higher else ("lower", "higher")
        if self.least == (1 if self.by == "times" else 0):
            return f"not {worse}"
        if self.least < 0:
            return f"at most {-self.least:g} {worse}"
        return f"at least {self.least:g} {'times ' * (self.by == 'times')}{better}"


class Claim(NamedTuple):
    """A system's reduced experiment.

    name: of the row; the method's name, or that and what sets it apart.
    method, baseline, scenario, metric, margin: what is expected of what; the margin is the card's.
    seeds: of what is recorded;  tuning: of the choice of rates, others.
    note: what was found out about a claim that did not show.
    """

    name: str
    method: Side
    baseline: Side
    scenario: Scenario
    metric: Metric
    margin: Margin
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning: tuple[int, ...] = (100, 101)
    note: str = ""


def final(column: str, name: str, *, higher: bool, scale: float = 1.0) -> Metric:
    """The last evaluation."""
    return Metric(name, lambda rows: scale * rows[-1][column], higher)


def late(column: str, name: str, *, higher: bool = False) -> Metric:
    """The mean over the evaluations of the last quarter of the rounds."""
    return Metric(name, lambda rows: _mean(row[column] for row in last_quarter(rows)), higher)


def rounds_to(target: float, column: str = "test_accuracy") -> Metric:
    """Rounds until the curve, made monotone and interpolated between evaluations, reaches the target; infinite where it never does."""

    def value(rows: Sequence[Row]) -> float:
        before = rows[0]
        for row in rows:
            if row[column] >= target:
                rise = row[column] - before[column]
                share = (target - before[column]) / rise if rise > 0 else 1.0
                return before["round"] + share * (row["round"] - before["round"])
            before = row if row[column] >= before[column] else {**before, "round": row["round"]}
        return math.inf

    return Metric(f"rounds to {target:.0%} test accuracy", value, higher=False, in_rounds=True)


def last_quarter(rows: Sequence[Row]) -> list[Row]:
    """The evaluations after three quarters of the rounds; always the last one."""
    return [row for row in rows if 4 * row["round"] > 3 * rows[-1]["round"]] or [rows[-1]]


ACCURACY = final("test_accuracy", "final test accuracy, %", higher=True, scale=100)
DISTANCE = late("test_distance", "squared distance to the optimum, late mean")


def _mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
