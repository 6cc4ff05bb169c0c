"""Runs that something happens to, and what they left; for the tests of going on."""
from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal

import pytest
from etils import epath

from fedjax_lab import resume, run, workdir
from fedjax_lab.engine import checkpoint

SETTINGS = {"task": "digits_logreg", "clients": 8, "cohort": 3, "rounds": 7, "eval_every": 3, "devices": 1}
ONE_BY_ONE = {"max_segment_seconds": 1e-9}  # a round in each device call


class Crash(Exception):
    pass


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise Crash


def go(path, prepared, until=None, how=terminate, mode="auto", **settings):
    """Trains in the folder, or goes on; after the round `until` something happens, before it is kept or, a crash, after it."""
    config = dataclasses.replace(prepared.config, **settings)
    prepared = prepared._replace(config=config)
    start = resume.find(str(path), config, mode)
    with workdir.WorkDir(str(path), prepared, start) as folder:

        def keep(now):
            happens = until is not None and now.clock >= until
            if happens and how is not crash:
                how()
            folder.keep(now)
            if happens and how is crash:
                crash()

        return run.follow(prepared, None, folder.start, keep)


def stopped(path, prepared, until, how=terminate, **settings):
    with pytest.raises((workdir.Stopped, Crash)):
        go(path, prepared, until, how, **settings)


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def outcome(path):
    """What a run left: its rows, and the bits of its last checkpoint."""
    saved = checkpoint.newest(epath.Path(path) / "checkpoint", "state", "model")
    rows = workdir.history(str(path))
    assert list(saved.notes["history"]) == rows
    arrays = {f"{g}{name}": (str(x.dtype), x.shape, x.tobytes()) for g, group in saved.groups.items() for name, x in group.items()}
    return timeless(rows), arrays, {k: v for k, v in saved.notes.items() if k not in ("seconds", "history")}


def contents(path):
    """Every file of a folder with its bytes and its time."""
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in pathlib.Path(path).rglob("*") if p.is_file()}


def clocks(path):
    return sorted(int(p.name) for p in (path / "checkpoint").iterdir() if p.name.isdigit())


def last(path):
    return path / "checkpoint" / f"{clocks(path)[-1]:08d}"


def edited(path, **changes):
    record = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in record.items()}))
