"""The files of a run: config.json, run.flags, partition.json, partition.npz, metrics.jsonl, curves.png, partition.png and the checkpoints;
with --tensorboard an event file.

A checkpoint holds everything that evolves, the rows of metrics.jsonl included, so a run goes on from its last whole checkpoint as if
nothing had happened. All other files follow from it and from the configuration.
"""
from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import platform as machine
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from fedjax_lab import config as configs
from fedjax_lab import guard, registry, resume, schedules, tasks
from fedjax_lab.config import Config
from fedjax_lab.data import manifest, picture
from fedjax_lab.engine import checkpoint, processes
from fedjax_lab.run import Diverged, Model, Prepared, Progress, finished
from fedjax_lab.types import Task


class Stopped(SystemExit):
    """SIGTERM came, and the progress is in a checkpoint. Uncaught, it ends the process with status 143."""

    def __init__(self, clock: int):
        super().__init__(128 + signal.SIGTERM)
        self.clock = clock


class WorkDir:
    """The open folder of a run: `with WorkDir(path, prepared, start) as folder: follow(prepared, report, folder.start, folder.keep)`.

    Args:
      path: the folder; one process at a time may open it.
      prepared: the run.
      start: what `resume.find` found in the folder.
      tensorboard: also writes an event file.

    Raises:
      ValueError: on entry, the folder cannot be written, another process has it open, or the data are not those of the run begun.
      OSError: later, the folder cannot be written any more; what was written before is kept.
      Stopped: after SIGTERM.
    """

    def __init__(self, path: str, prepared: Prepared, start: Progress | None = None, tensorboard: bool = False):
        self.path, self._prepared, self.start = epath.Path(path), prepared, start
        self._rows, self._saved = (len(start.history), start.clock) if start else (0, 0)
        self._stack, self._checkpoints, self._terminated, self._last = contextlib.ExitStack(), None, False, time.monotonic()
        self._metrics, self._tensorboard, self._events = None, tensorboard, None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
            except OSError as error:
                raise ValueError(f"--workdir={self.path}: cannot be written ({error.strerror or error}); choose another folder") from None
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        simulation, start = self._prepared.simulation, self.start
        processes.first(lambda: self._claim(stack, start))
        if start:
            first = simulation.init(simulation.world, jax.random.key(0))  # says where everything belongs
            self.start = start._replace(state=checkpoint.place(start.state, jax.tree.map(_shape, first)))
        if not start or not finished(self._prepared.config, start):
            stack.enter_context(guard.on_sigterm(self._terminate))

    def _claim(self, stack: contextlib.ExitStack, start: Progress | None) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(guard.alone(self.path))
        if start:
            resume.same_data(self.path, self._prepared.population)
            restore(self.path, start)
        if not start or not finished(self._prepared.config, start):
            describe(self.path, self._prepared)
            self._events = events(self.path, start.history if start else ()) if self._tensorboard else None
            if "://" not in str(self.path):  # a bucket cannot append
                self._metrics = (self.path / "metrics.jsonl").open("a" if start else "w")
                stack.callback(_close, self._metrics)
            checkpoint.set_aside(self.path / "checkpoint", start.clock if start else -1)

    def keep(self, now: Progress) -> None:
        """Writes the rows that are new, and a checkpoint when one is due; with the last one the curves."""
        over = finished(self._prepared.config, now)
        votes = processes.gather(self._due(now.clock), self._terminated)  # process 0 has the clock, a SIGTERM may reach any, at any moment
        due, stop = votes[0, 0], votes[:, 1].any()
        trees = None
        if now.clock != self._saved and (over or due or stop):
            trees = processes.whole({"state": now.state, "model": self._prepared.simulation.deploy(now.state)})
            self._saved = now.clock
        processes.first(lambda: self._write_down(now, trees, over, over or stop))
        if stop and not over:
            raise Stopped(now.clock)

    def _write_down(self, now: Progress, trees: Mapping[str, Any] | None, over: bool, last: bool) -> None:
        with self._writing():
            new = now.history[self._rows:]
            if new and self._metrics is None:
                restore(self.path, now)
            if new and self._events:
                self._log(now, new)
            for row in new if self._metrics else ():
                self._metrics.write(json.dumps(row) + "\n")
                self._metrics.flush()
            self._rows = len(now.history)
            if trees:
                self._save(now, trees, over)
            if self._checkpoints and last:
                self._checkpoints.wait_until_finished()

    def _log(self, now: Progress, new: tuple[Mapping[str, float], ...]) -> None:
        from fedjax_lab.metrics import tensorboard

        if self._metrics is None:  # in a bucket
            events(self.path, now.history)
            return
        with self._events.open("ab") as file:
            file.write(tensorboard.encode(new, self._events, header=False))

    def _due(self, clock: int) -> bool:
        rounds, seconds = configs.interval(self._prepared.config.checkpoint_every)
        return clock % rounds == 0 or time.monotonic() - self._last >= seconds

    def _save(self, now: Progress, trees: Mapping[str, Any], over: bool) -> None:
        try:
            if over:
                self._draw(now)
        finally:
            self._checkpoints = self._checkpoints or checkpoint.manager(self.path / "checkpoint", self._prepared.config.keep)
            notes = now._replace(state=None)._asdict()
            checkpoint.save(self._checkpoints, now.clock, notes, **trees)
        self._last = time.monotonic()

    def _draw(self, now: Progress) -> None:
        from fedjax_lab.metrics import curves

        curves.draw({self._prepared.config.method: now.history}, self.path / "curves.png")
        picture.plot(self._prepared.population, self.path / "partition.png")

    def __exit__(self, kind, *_) -> None:
        with self._stack, self._writing() if kind is None else contextlib.suppress(Exception):
            if self._checkpoints:
                self._checkpoints.close()
        if kind is None or issubclass(kind, (Diverged, Stopped)):  # where all processes are; none leaves before the first has written
            processes.gather(0)

    def _terminate(self, *_) -> None:
        self._terminated = True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):  # tensorstore's word for a full disk
                raise
            why = getattr(error, "strerror", None) or str(error).split("\n")[0].split(": ")[-1]
            raise OSError(f"{self.path}: cannot be written any more ({why}); what was written before is kept, and the same command goes on") from error


def describe(folder: epath.Path, prepared: Prepared) -> None:
    """Writes what is known of a run before its first round, config.json first: with it the folder is a run."""
    config, population = prepared.config, prepared.population
    record = {
        "config": dataclasses.asdict(config),
        "example": {k: [str(v.dtype), *v.shape[1:]] for k, v in population.train.examples.items()},
        "classes": population.manifest["classes"],
        "facts": {k: v for k, v in population.manifest.items() if k in ("users", "items", "tokens")},
        "plan": dict(prepared.simulation.plan), "versions": versions(), "command": sys.argv,
    }
    guard.write(folder / "config.json", json.dumps(record, indent=2, default=str) + "\n")
    guard.write(folder / "run.flags", "\n".join(configs.flags(config)) + "\n")
    guard.write(folder / "partition.json", manifest.text(population.manifest))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **picture.condensed(population))
    guard.write(folder / "partition.npz", arrays.getvalue())


def _close(file: Any) -> None:
    with contextlib.suppress(OSError):  # it tries once more what a full disk refused
        file.close()


def _shape(x: Any) -> Any:
    """A device's array as its shape and sharding, so that it makes room; arrays of the host as they are."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x


def restore(path: str | epath.Path, start: Progress) -> None:
    """Brings metrics.jsonl to the rows of a checkpoint: what a crash left behind it goes, what is lost comes back."""
    file, text = epath.Path(path) / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in start.history)
    if not file.exists() or file.read_text() != text:
        guard.write(file, text)


def events(path: str | epath.Path, history: Iterable[Mapping[str, float]]) -> epath.Path:
    """Writes the TensorBoard event file of these rows, in place of what is there."""
    from fedjax_lab.metrics import tensorboard

    file = tensorboard.place(epath.Path(path))
    guard.write(file, tensorboard.encode(history, file))
    return file


def open_folder(path: str) -> epath.Path:
    """A new or empty folder.

    Raises:
      ValueError: it holds something already, or cannot be made.
    """
    resume.demand_empty(path)
    folder = epath.Path(path)
    try:
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
    """The rows of a run's metrics.jsonl; a last line that is cut short does not count.

    Raises:
      ValueError: another line cannot be read.
    """
    rows = []
    for number, line in enumerate((epath.Path(path) / "metrics.jsonl").read_text().split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}: line {number} of metrics.jsonl is damaged; start the run again to get it back") from None
    return rows


def load(path: str, task: Task | None = None) -> Model:
    """The global model of a run's last checkpoint, ready for prediction.

    Args:
      path: the run's workdir.
      task: one's own task, where the run was not made from a named one.

    Raises:
      ValueError: the folder holds no run, or the run has no checkpoint yet.

    >>> run = fedjax_lab.train(task="digits_logreg", clients=6, cohort=3, rounds=2, workdir="runs/one")
    >>> x = np.ones((5, 8, 8, 1), np.float32)
    >>> bool((load("runs/one").predict(x) == run.model.predict(x)).all())
    True
    """
    folder = epath.Path(path)
    if not (folder / "config.json").exists():
        raise ValueError(f"{path}: holds no run (config.json is missing)")
    record = resume.read_config(path)
    saved = checkpoint.newest(folder / "checkpoint", "model")
    if saved is None:
        raise ValueError(f"{path}: the run has no checkpoint yet; see --checkpoint_every")
    task = _trained(record["config"], task or _task(record))
    if schedules.vertical(record["config"]["method"]):  # a joint model has as many parts as there were parties, which no task says
        return Model(task, jax.tree.map(jax.numpy.asarray, checkpoint.nested(saved.groups["model"])))
    return Model(task, checkpoint.place(saved.groups["model"], jax.eval_shape(task.init, jax.random.key(0))))


def _trained(config: Mapping[str, Any], task: Task) -> Task:
    """What the method made of the task."""
    known = config["method"] in registry.catalog("method")
    return (known and registry.make(config["method"], task, **config["options"]).task) or task


def _task(record: Mapping[str, Any]) -> Task:
    example = {k: np.zeros((1, *shape), dtype) for k, (dtype, *shape) in record["example"].items()}
    return tasks.made(record["config"]["task"], example, record["classes"], record["facts"])


__all__ = ["Stopped", "WorkDir", "default_path", "describe", "events", "history", "load", "open_folder", "restore", "versions"]
