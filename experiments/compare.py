"""Compares methods: python -m experiments.compare --methods=fedavg,scaffold,fedspeed --seeds=5 --partition=shards:2

All are trained on the same clients and, for every seed, with the same initial model and cohorts. --tune chooses options of each method
beforehand, on other seeds and with the same number of trials for all. Started again with the same --workdir it goes on.
"""
from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from experiments import series
from fedjax_lab import config as configs
from fedjax_lab import spec
from fedjax_lab.config import Config

FLAGS = flags.FLAGS
SEEDS = 5
APART = 1_000_000  # from a reported seed to a tuning seed

Options = Mapping[str, Any]


def define() -> None:
    """One flag per field of Config but the method, and those of a comparison."""
    series.define(("method",), SEEDS)
    flags.DEFINE_string("methods", None, "names, joined by commas", flag_values=FLAGS)
    flags.DEFINE_string("baseline", None, "the method that the others are compared to (default: the first)", flag_values=FLAGS)
    flags.DEFINE_multi_string("set", [], "option as key=value for all methods, or METHOD.key=value for one; repeatable", flag_values=FLAGS)
    flags.DEFINE_multi_string("tune", [], "option to tune, as key=value,value,... for all methods that have it, or METHOD.key=value,value,... "
                              "for one; repeatable", flag_values=FLAGS)
    flags.DEFINE_string("trials", None, "combinations of the tuned options that each method tries (default: as many as the smallest grid has)",
                        flag_values=FLAGS)
    flags.DEFINE_string("tune_seeds", None, "seeds of each trial, none of them reported (default: 1)", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 1 when the folder cannot be written, 2 for a request that is not valid."""
    return series.answer(argv, _compare)


def _compare() -> int:
    from fedjax_lab import many

    base = configs.make({f.name: getattr(FLAGS, f.name) for f in configs.fields() if f.name != "method"})
    seeds, tuning = series.seeds(SEEDS), [base.seed + APART + i for i in range(series.number("tune_seeds", spec.Count, 1))]
    names = methods()
    baseline = FLAGS.baseline or names[0]
    spec.choose("baseline", baseline, dict.fromkeys(names))
    chosen = {name: many.typed(name, options) for name, options in owned("set", names).items()}
    tried = trials(chosen)
    cells = [cell(base, name, name, chosen[name], seed) for name in names for seed in seeds]
    path = series.folder(f"compare-{base.task.split(':')[0]}")
    said = []
    if FLAGS.tune:
        chosen, said = tune(base, chosen, tried, tuning, path)
        cells = [cell(base, name, name, chosen[name], seed) for name in names for seed in seeds]
    series.conclude(path, series.train(cells, path / "runs"), [f"{', '.join(names)}: {series.settings(base)}", *said], baseline)
    return 0


def methods() -> list[str]:
    """The methods that --methods names.

    Raises:
      ValueError: none, an unknown one, or one twice.
    """
    from fedjax_lab import registry

    names = [name.strip() for name in (FLAGS.methods or "").split(",")]
    for at, name in enumerate(names):
        if not name:
            raise ValueError("--methods: name one or more, joined by commas; experiments.train --list prints them")
        spec.choose("method", name, registry.catalog("method"))
        if name in names[:at]:
            raise ValueError(f"--methods: '{name}' is named twice")
    return names


def owned(flag: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """{method: {option: text}} of --set or --tune; an option of --tune without a method goes to those that have it.

    Raises:
      ValueError: a method that is not compared, or an option that no method has.
    """
    from fedjax_lab import registry

    has = {name: [option.name for option in spec.options(registry.catalog("method")[name])] for name in names}
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in series.pairs(flag, getattr(FLAGS, flag), "key=value or METHOD.key=value"):
        method, dot, option = key.rpartition(".")
        if dot:
            spec.choose(f"method of --{flag}={key}:", method, dict.fromkeys(names))
        owners = [method] if dot else [name for name in names if flag == "set" or option in has[name]]
        if not any(option in has[name] for name in owners):
            valid = spec.nearest(option, dict.fromkeys(itertools.chain(*(has[name] for name in owners or names))))
            raise ValueError(f"--{flag}={key}: no such option of {', '.join(owners or names)}; valid: {valid}")
        for name in owners:
            found[name][option] = value
    return found


def trials(chosen: Mapping[str, Options]) -> dict[str, list[Options]]:
    """{method: tuned options to try}: its grid, or as many points of it as the other methods may try, drawn without replacement.

    Raises:
      ValueError: a grid has fewer points than --trials, or a value is not valid.
    """
    from fedjax_lab import many

    grids = {}
    for name, options in owned("tune", list(chosen)).items():
        points = itertools.product(*[[v.strip() for v in text.split(",")] for text in options.values()])
        typed = [many.typed(name, {**chosen[name], **dict(zip(options, point, strict=True))}) for point in points]
        grids[name] = [{option: values[option] for option in options} for values in typed]
    smallest = min(grids, key=lambda name: len(grids[name]))
    number = series.number("trials", spec.Count, len(grids[smallest]))
    if number > len(grids[smallest]):
        raise ValueError(f"--trials={number}: the grid of {smallest} has {len(grids[smallest])}, and all methods try as many")
    return {name: [grid[at] for at in sorted(random.Random(0).sample(range(len(grid)), number))] for name, grid in grids.items()}


def cell(base: Config, label: str, method: str, options: Options, seed: int) -> series.Cell:
    """One run of a method."""
    plain = {f.name: getattr(base, f.name) for f in configs.fields()}
    return series.Cell(label, configs.make({**plain, "method": method, "options": options, "seed": seed}))


def tune(base: Config, fixed: Mapping[str, Options], tried: Mapping[str, list[Options]], seeds: Sequence[int],
         path: epath.Path) -> tuple[dict[str, Options], list[str]]:
    """The best of what each method tried, with its fixed options, and lines that say so."""
    from fedjax_lab.metrics import comparison

    cells = [cell(base, series.label(name, options), name, {**fixed[name], **options}, seed)
             for name, grid in tried.items() for options in grid for seed in seeds]
    results = series.train(cells, path / "tuning")
    metric = series.metric(results)
    best, said = {}, []
    for name, grid in tried.items():
        scores = [comparison.score(list(results[series.label(name, options)].values()), metric) for options in grid]
        at = max(range(len(grid)), key=scores.__getitem__)
        if math.isinf(scores[at]):
            raise ValueError(f"every trial of {name} broke off; --tune smaller values of lr")
        best[name] = {**fixed[name], **grid[at]}
        every = ", ".join(f"{series.label('', options)}: {abs(score):.4f}" for options, score in zip(grid, scores, strict=True))
        said.append(f"- {series.label(name, grid[at])}, of {every}")
    head = (f"Options tuned for each method with the same budget: {len(grid)} trials of {len(seeds)} seed{'s' * (len(seeds) > 1)}, from {seeds[0]} "
            f"on, none of them reported; chosen by {metric} after the last round, on the same test data:")
    return best, [head, *said, ""]


if __name__ == "__main__":
    series.entry(define, main)
