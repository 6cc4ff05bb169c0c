"""The files of a run: config.json, run.flags, partition.json, metrics.jsonl, curves.png and the final checkpoint."""
from __future__ import annotations

import dataclasses
import json
import platform as machine
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from fedjax_lab import config as configs
from fedjax_lab import tasks
from fedjax_lab.config import Config
from fedjax_lab.engine import checkpoint
from fedjax_lab.run import Model, Prepared, Run


class WorkDir:
    """An open folder of a run. Every file appears as soon as its content is known; nothing that is there is overwritten."""

    def __init__(self, path: str, prepared: Prepared):
        """Creates the folder and writes what is known before the first round.

        Raises:
          ValueError: the folder holds something already, or cannot be written.
        """
        self.path = open_folder(path)
        config, example = prepared.config, prepared.population.train.examples
        shapes = {k: [str(v.dtype), *v.shape[1:]] for k, v in example.items()}
        record = {
            "config": dataclasses.asdict(config), "example": shapes, "classes": int(prepared.population.counts.shape[1]),
            "facts": {k: v for k, v in prepared.population.manifest.items() if k in ("users", "items", "tokens")},
            "plan": dict(prepared.simulation.plan), "versions": versions(), "command": sys.argv,
        }
        self._write("config.json", json.dumps(record, indent=2, default=str) + "\n")
        self._write("run.flags", "\n".join(configs.flags(config)) + "\n")
        self._write("partition.json", json.dumps(prepared.population.manifest, indent=2, default=_plain) + "\n")
        self._metrics = (self.path / "metrics.jsonl").open("w")

    def add(self, row: Mapping[str, float]) -> None:
        """Appends one evaluation to metrics.jsonl."""
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()

    def finish(self, run: Run) -> None:
        """Draws the curves and writes the final checkpoint."""
        from fedjax_lab.metrics import curves

        self._metrics.close()
        curves.draw({run.config.method: run.history}, self.path / "curves.png")
        clock = run.history[-1]["round"]
        checkpoint.save(self.path / "checkpoint" / f"{clock:08d}", {"model": run.model.params, "state": run.state})

    def _write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)


def open_folder(path: str) -> epath.Path:
    """A new or empty folder.

    Raises:
      ValueError: it holds something already, or cannot be made.
    """
    folder = epath.Path(path)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"--workdir={path}: already holds {next(iter(folder.iterdir())).name}; nothing is overwritten, choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={path}: cannot be written ({error.strerror}); choose another folder") from None
    return folder


def default_path(config: Config) -> str:
    """runs/<method>-<task>-<time>."""
    return f"runs/{config.method}-{config.task.split(':')[0]}-{time.strftime('%Y%m%d-%H%M%S')}"


def versions() -> dict[str, str]:
    """Of the library, Python and JAX, and the device kind."""
    from fedjax_lab import __version__

    return {"fedjax_lab": __version__, "python": machine.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def history(path: str) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(path) / "metrics.jsonl").read_text().splitlines()]


def load(path: str, task=None) -> Model:
    """The trained global model of a finished run, ready for prediction.

    Args:
      path: the run's workdir.
      task: one's own task, where the run was not made from a named one.

    Raises:
      ValueError: the folder holds no run, or the run has no checkpoint yet.
    """
    folder = epath.Path(path)
    if not (folder / "config.json").exists():
        raise ValueError(f"{path}: holds no run (config.json is missing)")
    saved = sorted(p for p in (folder / "checkpoint").glob("*") if p.name.isdigit()) if (folder / "checkpoint").exists() else []
    if not saved:
        raise ValueError(f"{path}: the run has no checkpoint yet; it is written when the run ends")
    record = json.loads((folder / "config.json").read_text())
    task = task or _task(record)
    like = jax.eval_shape(task.init, jax.random.key(0))
    params = checkpoint.restore(saved[-1])["model"]
    leaves, wanted = jax.tree.leaves(params), jax.tree.structure(like)
    return Model(task, jax.tree.unflatten(wanted, [jax.numpy.asarray(x) for x in leaves]))


def _task(record: Mapping[str, Any]):
    text = record["config"]["task"]
    source, model, options = tasks.split(text)
    example = {k: np.zeros((1, *shape), dtype) for k, (dtype, *shape) in record["example"].items()}
    return tasks.build(text, model, example, record["classes"], tasks.of_model(source, options), record["facts"])


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


__all__ = ["WorkDir", "default_path", "history", "load", "open_folder", "versions"]
