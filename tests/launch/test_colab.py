"""Beside the JAX of a runtime: what is there is not touched, what is missing comes with JAX held."""
from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest
from outcome import ROOT

from launch import colab

THERE = {"jax": "0.10.2", "jaxlib": "0.10.2", "numpy": "2.3.0", "optax": "0.2.5", "flax": "0.12.0", "libtpu": "1", "jax-cuda13-plugin": "0.10.2"}
NEEDS = ["jax>=0.10", "numpy>=2.0", "optax>=0.2.6", "flax>=0.12", "chex>=0.1.90", "array_record>=0.8; sys_platform == 'nowhere'",
         'pytest>=8; extra == "test"', 'jax[tpu]>=0.10; extra == "tpu"']


@pytest.fixture
def runtime(monkeypatch, capfd):
    """Installs into a runtime that has THERE; gives the exit status, pip's calls with the constraints' text, and the errors."""

    def call(*argv: str, there=THERE, status: int = 0):
        calls = []

        def run(command, check):
            at = command.index("--constraint") + 1 if "--constraint" in command else None
            calls.append((command[5:], pathlib.Path(command[at]).read_text() if at else ""))
            return subprocess.CompletedProcess(command, status)

        found = [type("Found", (), {"name": name, "version": version}) for name, version in there.items()]
        monkeypatch.setattr(colab.subprocess, "run", run)
        monkeypatch.setattr(colab.metadata, "distributions", lambda: found)
        monkeypatch.setattr(colab.metadata, "requires", lambda name: NEEDS)
        return colab.main(list(argv)), calls, capfd.readouterr()

    return call


def test_what_is_missing_comes_with_jax_held(runtime):
    status, calls, _ = runtime()
    (project, _), (rest, pins) = calls
    assert status == 0 and project == ["--no-deps", str(ROOT)] and rest[2:] == ["optax>=0.2.6", "chex>=0.1.90"]
    assert pins.split() == ["jax==0.10.2", "jax-cuda13-plugin==0.10.2", "jaxlib==0.10.2", "libtpu==1", "numpy==2.3.0"]


def test_nothing_is_missing(runtime):
    status, calls, _ = runtime(there={**THERE, "optax": "0.3", "chex": "0.1.90"})
    assert status == 0 and len(calls) == 1


def test_a_jax_that_is_too_old_is_kept_and_named(runtime):
    status, calls, said = runtime(there={**THERE, "jax": "0.7.2"})
    assert status == 2 and len(calls) == 1 and "this runtime has jax 0.7.2, fedjax_lab needs jax>=0.10" in said.err


def test_pips_failure_is_the_status(runtime):
    status, calls, _ = runtime(status=3)
    assert (status, len(calls)) == (3, 1)


def test_dry_run_prints_and_does_nothing(runtime):
    status, calls, said = runtime("--dry_run")
    assert (status, calls) == (0, []) and said.out.count("pip install") == 2 and "--no-deps" in said.out
    status, _, said = runtime("--dryrun")
    assert status == 2 and said.err.count("\n") == 1 and "'--dryrun'; valid: --dry_run" in said.err


def test_it_starts_where_the_project_is_not_installed():
    """As a file, from anywhere, without the library."""
    code = ("import runpy, sys; sys.modules['fedjax_lab'] = None; sys.argv[1:] = ['--dry_run']; "
            f"runpy.run_path({str(ROOT / 'launch' / 'colab.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", timeout=60)
    assert done.returncode in (0, 2) and re.match(r".*pip install --quiet --no-deps ", done.stdout), done.stderr
