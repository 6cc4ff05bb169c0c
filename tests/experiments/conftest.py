from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import NamedTuple

import interruption
import jax
import pytest
from absl import flags
from ahead import environment_of_users

from experiments import screen, series, train
from fedjax_lab import config as configs
from fedjax_lab import run, workdir

ROOT = pathlib.Path(__file__).parents[2]
DRAW = workdir.WorkDir._draw
SMALL = ("--task=digits_logreg", "--clients=8", "--cohort=3", "--rounds=4", "--eval_every=2", "--devices=1")


class Done(NamedTuple):
    """A finished call of experiments.train: its exit status, what it printed and its folder."""

    status: int
    out: str
    err: str
    path: pathlib.Path

    @property
    def rows(self) -> list[dict]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in workdir.history(str(self.path))]


@pytest.fixture(scope="session")
def prepared():
    """One compiled program for all runs that something happens to and that need no command line."""
    jax.devices()  # the backend starts with the devices of tests/conftest.py
    return run.prepare(configs.make(interruption.SETTINGS))


@pytest.fixture(scope="session")
def whole(prepared, tmp_path_factory):
    """The run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole")
    interruption.go(path, prepared)
    return interruption.outcome(path)


@pytest.fixture(scope="session")
def kept():
    """Runs that several tests look at."""
    return {}


@pytest.fixture(autouse=True)
def drafts(monkeypatch):
    """The pictures of runs are left blank but for the plain one's: they take as long as a small run."""
    monkeypatch.setattr(workdir.WorkDir, "_draw", lambda self, now: [(self.path / f"{name}.png").write_bytes(b"") for name in ("curves", "partition")])


@pytest.fixture
def plain(job, kept, monkeypatch) -> Done:
    """The small run without further flags, made once, with its pictures."""
    if "plain" not in kept:
        with monkeypatch.context() as drawn:
            drawn.setattr(workdir.WorkDir, "_draw", DRAW)
            kept["plain"] = job()
    return kept["plain"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Compiled programs of this session's runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def program(job, monkeypatch, capsys):
    """Calls a program of experiments in this process with flags of its own; gives its exit status and what it printed."""

    def call(module, *argv: str) -> tuple[int, str, str]:
        values = flags.FlagValues()
        for place in (flags, module, series):
            monkeypatch.setattr(place, "FLAGS", values)
        module.define()
        capsys.readouterr()
        try:
            status = module.main(screen.parse_flags([module.__name__, *argv]))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def job(monkeypatch, capsys, tmp_path, programs):
    """Calls experiments.train in this process with flags of its own."""

    def call(*argv: str, base: tuple[str, ...] = SMALL) -> Done:
        path = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        values = flags.FlagValues()
        for module in (flags, train):
            monkeypatch.setattr(module, "FLAGS", values)
        train.define()
        capsys.readouterr()
        try:
            status = train.main(screen.parse_flags(["train", f"--workdir={path}", *base, *argv]))
        except SystemExit as stop:
            status = stop.code
        if status == 143:  # the runs of these tests are not told to end: whoever did so meant this process, as a limit of time does
            pytest.exit("SIGTERM came while a test trained", 143)
        return Done(status, *capsys.readouterr(), path)

    jax.devices()  # the backend starts with the devices of tests/conftest.py, whatever --devices says
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    monkeypatch.delenv("FEDJAX_LAB_DATA", raising=False)
    names = ("jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield call
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def process(tmp_path, programs):
    """Calls experiments.train in a process of its own, which compiles as for users: different programs agree to the bit, convolutions are fast."""
    env = {**environment_of_users(), "XDG_CACHE_HOME": str(programs)}

    def call(*argv: str, base: tuple[str, ...] = SMALL) -> Done:
        path = tmp_path / f"process{len(list(tmp_path.glob('process*')))}"
        command = (sys.executable, "-m", "experiments.train", f"--workdir={path}", *base, *argv)
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
        return Done(done.returncode, done.stdout, done.stderr, path)

    return call
