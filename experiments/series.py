"""What compare and sweep share: their flags, the folder of many runs, and the table and curves made of them.

    W/runs/LABEL-seedN/    a folder per run: config.json, run.flags, partition.json, metrics.jsonl, broken.txt where it broke off
    W/table.md, table.csv, curves.png

A run's folder appears when the run is done, so the same command, started again, trains what is missing.
"""
from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging
from etils import epath

from experiments import screen
from fedjax_lab import config as configs
from fedjax_lab import spec
from fedjax_lab.config import Config

FLAGS = flags.FLAGS


class Cell(NamedTuple):
    """One run: the label that its seeds share, and its configuration."""

    label: str
    config: Config

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', self.label)}-seed{self.config.seed}"


def entry(define: Callable[[], None], main: Callable[[list[str]], int]) -> None:
    """A program of a series: parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.FATAL)
    app.run(main, flags_parser=screen.parse_flags)


def define(but: Collection[str], seeds: int, table: bool = True) -> None:
    """One flag per field of Config but these, and those of a series of runs; --target only where its table counts rounds and bytes."""
    screen.define([field.name for field in configs.fields() if field.name not in but])
    flags.DEFINE_string("seeds", None, f"how many seeds, from --seed on (default: {seeds})", flag_values=FLAGS)
    flags.DEFINE_string("metric", None, "column of metrics.jsonl that is compared (default: test_accuracy, without classes test_loss)", flag_values=FLAGS)
    if table:
        flags.DEFINE_string("target", None, "value of the metric up to which rounds and bytes are counted (default: the baseline's last mean)",
                            flag_values=FLAGS)
    flags.DEFINE_string("at_once", None, "most runs in one device call (default: all of a small model, else as many as run at the same time)",
                        flag_values=FLAGS)
    flags.DEFINE_string("workdir", None, "folder of the runs, new, empty or begun before by the same command", flag_values=FLAGS)


def number(name: str, kind: Any, default: Any) -> Any:
    """A flag's value, typed.

    Raises:
      ValueError: it is not of that type.
    """
    value = getattr(FLAGS, name, None)
    return default if value is None else spec.convert(kind, value, f"--{name}")


def seeds(default: int) -> list[int]:
    """The seeds that --seed and --seeds name."""
    first = configs.make({"seed": FLAGS.seed}).seed
    return [first + i for i in range(number("seeds", spec.Count, default))]


def pairs(flag: str, items: Sequence[str], form: str = "key=value") -> list[tuple[str, str]]:
    """(key, value) of repeatable flags --flag=key=value.

    Raises:
      ValueError: one has no "=", or comes twice.
    """
    split = [(key.strip(), equals, value.strip()) for key, equals, value in (item.partition("=") for item in items)]
    for at, (key, equals, value) in enumerate(split):
        if not (key and equals and value):
            raise ValueError(f"--{flag}={items[at]}: expected {form}")
        if key in [other for other, *_ in split[:at]]:
            raise ValueError(f"--{flag}={items[at]}: '{key}' is given twice")
    return [(key, value) for key, _, value in split]


def answer(argv: list[str], work: Callable[[], int]) -> int:
    """The exit status: as of screen.answer, and 1 where the folder cannot be written any more."""

    def guarded() -> int:
        try:
            return work()
        except OSError as error:
            print(f"error: {error}; what was written before is kept, and the same command goes on", file=sys.stderr)
            return 1

    return screen.answer(argv, guarded)


def folder(default: str) -> epath.Path:
    """The folder of the series, made if need be.

    Raises:
      ValueError: it holds something else, or cannot be written; or --target or --at_once is no number.
    """
    from fedjax_lab import workdir

    for name, kind in (("target", float), ("at_once", spec.Count)):
        number(name, kind, None)
    path = FLAGS.workdir or f"runs/{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    begun = epath.Path(path) / "runs"
    if not begun.exists():
        workdir.open_folder(path)
    begun.mkdir(parents=True, exist_ok=True)
    return epath.Path(path)


def label(name: str, options: Mapping[str, Any]) -> str:
    """A name with options, for tables and folders."""
    return ", ".join([*([name] if name else []), *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options.items())])


def train(cells: Sequence[Cell], path: epath.Path, blended: bool = False, most: int | None = None) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Trains the cells whose runs are not in the folder yet.

    Args:
      cells, path: what, and the folder of the runs.
      blended: see many.each.
      most: runs in one device call, where --at_once does not say.

    Returns:
      {label: {seed: rows}} of all cells, no rows for a run that broke off.

    Raises:
      ValueError: a configuration is not valid, or the folder holds a run of the same name and another configuration.
    """
    from fedjax_lab import guard, many

    at_once, found = number("at_once", spec.Count, most), there(cells, path)
    missing = [cell for cell in cells if cell.name not in found]
    if found:
        print(f"{path}: {len(found)} of {len(cells)} runs are there", flush=True)
    path.mkdir(parents=True, exist_ok=True)
    with guard.alone(path):
        report = functools.partial(print, flush=True)
        for at, prepared, trained in many.each([cell.config for cell in missing], at_once=at_once, report=report, blended=blended):
            cell = missing[at]
            write(path / cell.name, prepared, trained)
            if trained.broken:
                print(f"{cell.label}, seed {cell.config.seed}: {trained.broken}", flush=True)
            found[cell.name] = [] if trained.broken else trained.history
    results: dict[str, dict[int, list]] = {}
    for cell in cells:
        results.setdefault(cell.label, {})[cell.config.seed] = found[cell.name]
    return results


def there(cells: Sequence[Cell], path: epath.Path) -> dict[str, list[dict[str, float]]]:
    """{name: rows} of the cells whose runs are done.

    Raises:
      ValueError: two cells have the same name, or a run in the folder has another configuration.
    """
    twice = [cell.label for at, cell in enumerate(cells) if cell.name in [other.name for other in cells[:at]]]
    if twice:
        raise ValueError(f"'{twice[0]}' is asked for twice; leave one out")
    rows = {cell.name: found_at(path / cell.name, cell.config) for cell in cells}
    return {name: history for name, history in rows.items() if history is not None}


def found_at(path: epath.Path, config: Config) -> list[dict[str, float]] | None:
    """The rows of a run that is done, none of one that broke off; None where it has to be trained.

    Raises:
      ValueError: the run there has another configuration.
    """
    from fedjax_lab import resume, run, workdir

    if not (path / "config.json").exists():
        return None
    changed = resume.differences(resume.read_config(path)["config"], config)
    if changed:
        raise ValueError(f"--workdir={path.parent.parent}: run {path.name} there has another configuration ({'; '.join(changed)}); choose a new folder")
    rows = workdir.history(path)
    if (path / "broken.txt").exists():
        return []
    return rows if rows and run.finished(config, run.Progress((), clock=rows[-1]["round"], history=tuple(rows))) else None


def write(path: epath.Path, prepared: Any, trained: Any) -> None:
    """The folder of a run that is done, whole or not at all."""
    from fedjax_lab import workdir

    part = path.parent / f".{path.name}.tmp"
    for old in (part, path):
        if old.exists():
            old.rmtree()
    part.mkdir(parents=True)
    workdir.describe(part, prepared)
    (part / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trained.history))
    if trained.broken:
        (part / "broken.txt").write_text(trained.broken + "\n")
    part.rename(path)


def metric(results: Mapping[str, Mapping[int, list]]) -> str:
    """The column that is compared.

    Raises:
      ValueError: it is none that all runs have.
    """
    rows = [row for runs in results.values() for run in runs.values() for row in run]
    if not rows:
        raise ValueError("every run broke off; a smaller lr is the usual cure")
    columns = sorted(set.intersection(*(set(row) for row in rows)) - {"round", "seconds", "bytes_up", "bytes_down", "flops", "privacy"})
    name = FLAGS.metric or ("test_accuracy" if "test_accuracy" in columns else "test_loss")
    if name not in columns:
        raise ValueError(f"--metric={name}: not in every run; valid: {spec.nearest(name, columns)}")
    return name


def conclude(path: epath.Path, results: Mapping[str, Mapping[int, list]], said: Sequence[str], baseline: str) -> None:
    """Writes table.md, table.csv and curves.png, and prints the table.

    Args:
      path: the folder.
      results: of all runs, as `train` returns them.
      said: lines above the table, the first of them the title.
      baseline: the label that the others are compared to.
    """
    from fedjax_lab.metrics import comparison

    column = metric(results)
    target = number("target", float, None)
    target = comparison.default_target(results, column, baseline) if target is None else target
    lines = comparison.table(results, column, baseline, target)
    text = "\n".join([*said, "", comparison.legend(column, baseline, target, lines), "", comparison.markdown(lines)])
    (path / "table.md").write_text(text)
    (path / "table.csv").write_text(comparison.csv(lines))
    comparison.draw(results, column, path / "curves.png")
    print(f"\n{text}\n{path}: table.md, table.csv, curves.png, runs/", flush=True)


def settings(config: Config) -> str:
    """What all runs of a series share, in a line."""
    shown = {f.name: getattr(config, f.name) for f in configs.fields() if getattr(config, f.name) != f.default and not f.metadata.get("free")}
    shown = {k: v for k, v in shown.items() if k not in ("method", "seed", "task", "rounds")}
    return ", ".join([config.task, f"{config.rounds} rounds", *(f"{k} {v}" for k, v in shown.items())])


__all__ = ["Cell", "answer", "conclude", "define", "entry", "folder", "label", "metric", "number", "pairs", "seeds", "settings", "there", "train"]
