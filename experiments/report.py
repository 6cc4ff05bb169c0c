"""Makes one HTML page of finished runs: python -m experiments.report --out=report.html runs/fedavg runs/scaffold

RUNS are folders of experiments.train, and of experiments.compare and experiments.sweep, whose runs lie in runs/ below. The page holds
configuration, clients, curves, ledgers and system, needs nothing beside it, and opens in any browser.
"""
from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from etils import epath

from experiments import screen
from fedjax_lab.config import Config

FLAGS = flags.FLAGS


def define() -> None:
    """The flags of the report."""
    flags.DEFINE_string("out", "report.html", "the page to write, replaced where there is one", flag_values=FLAGS)
    flags.DEFINE_string("title", None, "heading of the page (default: the methods and the task)", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """0 when written, 2 for a folder without runs or a page that cannot be written."""
    return screen.answer(argv[:1], lambda: _report(argv[1:]))


def _report(paths: Sequence[str]) -> int:
    from fedjax_lab.metrics import page

    if not paths:
        raise ValueError("name one or more folders of runs, as experiments.train or experiments.compare left them")
    folders = list({str(run.resolve()): run for path in paths for run in folders_of(path)}.values())
    names = [run.name for run in folders]
    runs = [read(run, run.name if names.count(run.name) == 1 else str(run)) for run in folders]
    out = epath.Path(FLAGS.out)
    try:
        out.write_text(page.page(FLAGS.title or title(runs), runs), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out={out}: cannot be written ({error.strerror or error}); choose another place") from None
    print(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}, {screen.size(out.stat().length)}")
    return 0


def folders_of(path: str) -> list[epath.Path]:
    """The folders of the runs in a folder: itself, or those in runs/ below.

    Raises:
      ValueError: there is none.
    """
    folder = epath.Path(path)
    if (folder / "config.json").exists():
        return [folder]
    below = folder / "runs"
    found = sorted(run for run in below.iterdir() if (run / "config.json").exists() and not run.name.startswith(".")) if below.is_dir() else []
    if not found:
        raise ValueError(f"{path}: holds no run (config.json is missing, and so is runs/ with some below)")
    return found


def read(folder: epath.Path, name: str) -> Any:
    """What the page shows of a run.

    Raises:
      ValueError: a file is missing or damaged.
    """
    from fedjax_lab import registry, resume, spec, workdir
    from fedjax_lab.metrics import pieces

    record = resume.read_config(str(folder))
    settings = {**dataclasses.asdict(Config()), **record["config"]}
    options, known = settings.pop("options"), registry.catalog("method").get(settings["method"])
    defaults = {o.name: o.default for o in spec.options(known) if not o.required} if known else {}
    broken = folder / "broken.txt"
    try:
        rows = workdir.history(str(folder))
        facts = json.loads((folder / "partition.json").read_text())
        if not (rows or broken.exists()) or not all("round" in row and "test_loss" in row for row in rows):
            raise ValueError(f"{folder}: no evaluation yet in metrics.jsonl")
        arrays = folder / "partition.npz"
        picture = dict(np.load(io.BytesIO(arrays.read_bytes()))) if arrays.exists() else {}
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: holds no whole run ({epath.Path(error.filename).name} is missing)") from None
    except json.JSONDecodeError:
        raise ValueError(f"{folder}: partition.json is damaged") from None
    free = frozenset(f.name for f in dataclasses.fields(Config) if f.metadata.get("free"))
    given = {f"set {k}": v for k, v in options.items()}
    return pieces.Ran(name, {**settings, **given}, free, rows, broken.read_text().strip() if broken.exists() else "", facts, picture,
                      {**defaults, **options}, record.get("plan", {}), record.get("versions", {}), pieces.command(record.get("command", [])))


def title(runs: Sequence[Any]) -> str:
    """The methods and the tasks."""
    of = {key: list(dict.fromkeys(run.settings[key] for run in runs)) for key in ("method", "task")}
    return f"{', '.join(of['method'])} on {', '.join(of['task'])}"


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    app.run(main, flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
