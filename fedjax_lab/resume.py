"""What a folder holds to go on from: the last whole checkpoint of a run of equal configuration. Nothing is written here."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
from etils import epath

from fedjax_lab import platform, schedules, spec
from fedjax_lab.config import Config
from fedjax_lab.data import manifest
from fedjax_lab.engine import checkpoint, processes
from fedjax_lab.run import Progress
from fedjax_lab.types import Population


def find(path: str, config: Config, resume: str = "auto") -> Progress | None:
    """The progress of the run in this folder, its state as host arrays by path; None for a run that starts with round 0.

    Args:
      path: the folder, which need not exist.
      config: of the run to start or to continue; only free settings may differ from those of the run begun, and rounds be raised.
      resume: "auto", "must" (there is something to continue) or "never" (there is nothing).

    Raises:
      ValueError: `resume` is not obeyed, the folder holds something else, or a run that differs, or one of a newer library.
    """
    spec.convert(Literal["auto", "never", "must"], resume, "--resume")
    platform.prepare(config.devices, config.precision, config.cache_dir)  # before orbax wakes JAX up
    return processes.first(lambda: _find(path, config, resume))


def _find(path: str, config: Config, resume: str) -> Progress | None:
    folder = epath.Path(path)
    begun = (folder / "config.json").exists()
    if resume == "must" and not begun:
        raise ValueError(f"--resume=must: {path} holds no run to continue; --resume=auto starts one")
    if resume == "never" or not begun:
        demand_empty(path)
        return None
    record = read_config(path)
    changed = differences(record["config"], config)
    if changed:
        raise ValueError(f"--workdir={path}: holds a run of another configuration ({'; '.join(changed)}); choose a new folder")
    if record["versions"]["jax"] != jax.__version__:
        warnings.warn(f"{path}: begun with jax {record['versions']['jax']}, this is {jax.__version__}; bits may differ", stacklevel=2)
    saved = checkpoint.newest(folder / "checkpoint", "state")
    if saved is not None:
        return Progress(**{**saved.notes, "state": saved.groups["state"], "history": tuple(saved.notes["history"])})
    if resume == "must":
        raise ValueError(f"--resume=must: {path} holds no whole checkpoint; --resume=auto starts the run again")
    return None


def as_begun(path: str, config: Config) -> Config:
    """The configuration with the chunk of the run in this folder where it is left open: other ones may change the last bits."""
    chunk = processes.first(lambda: read_config(path)["config"]["chunk"])
    return dataclasses.replace(config, chunk=chunk) if config.chunk == "auto" else config


def demand_empty(path: str) -> None:
    """Refuses a folder that holds something, but for what a crash left before there was anything in it.

    Raises:
      ValueError: it does, or cannot be read.
    """
    folder = epath.Path(path)
    try:
        there = sorted(p.name for p in folder.iterdir() if not re.fullmatch(r"\..*\.tmp", p.name)) if folder.exists() else []
    except OSError as error:
        raise ValueError(f"--workdir={path}: cannot be written ({error.strerror}); choose another folder") from None
    if there:
        raise ValueError(f"--workdir={path}: already holds {there[0]}; nothing is overwritten, choose a new folder")
    if "://" not in path:
        above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ValueError(f"--workdir={path}: cannot be written ({above} is {'read-only' if above.is_dir() else 'no folder'}); choose another folder")


def read_config(path: str) -> dict[str, Any]:
    """What config.json says.

    Raises:
      ValueError: it is none of a run, or of a newer version of the library.
    """
    from fedjax_lab import __version__

    try:
        record = json.loads((epath.Path(path) / "config.json").read_text())
        settings, version = dict(record["config"]), record["versions"]["fedjax_lab"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: config.json is not that of a run, or damaged; nothing is overwritten, choose another folder") from None
    unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(Config)})
    if unknown or _number(version) > _number(__version__):
        what = f" and has settings unknown here ({', '.join(unknown)})" if unknown else ""
        raise ValueError(f"{path}: config.json is by fedjax_lab {version}{what}, this is {__version__}; use that version")
    return record


def differences(old: Mapping[str, Any], config: Config) -> list[str]:
    """The settings that forbid to continue, as `name: old -> new`."""
    free = {f.name for f in dataclasses.fields(Config) if f.metadata.get("free")}
    was, now = ({**_flat(dataclasses.asdict(Config())), **_flat(old)}, _flat(json.loads(json.dumps(dataclasses.asdict(config)))))
    changed = {k: (was.get(k, "default"), now.get(k, "default")) for k in {**was, **now} if k not in free and was.get(k) != now.get(k)}
    lines = {k: f"{k}: {a} -> {b}" for k, (a, b) in changed.items()}
    if "rounds" in lines and now["rounds"] > was["rounds"] and not schedules.rolled_out(config):
        del lines["rounds"]
    elif "rounds" in lines:
        lines["rounds"] += ", which the schedule was rolled out for" if schedules.rolled_out(config) else ", can only be raised"
    return list(lines.values())


def same_data(path: epath.Path, population: Population) -> None:
    """Refuses data with other hashes than those of the run begun.

    Raises:
      ValueError: a hash differs.
    """
    old, new = json.loads((path / "partition.json").read_text()), json.loads(manifest.text(population.manifest))
    changed = [f"{k}: {old[k]} -> {new.get(k)}" for k in old if k.startswith("sha256") and old[k] != new.get(k)]
    if changed:
        raise ValueError(f"--workdir={path}: holds a run on other data ({'; '.join(changed)}); choose a new folder")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in settings.items() if k != "options"}, **{f"set {k}": v for k, v in settings["options"].items()}}


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
