from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ahead import environment_of_users
from outcome import ROOT, RUN, Result, result


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of the processes that tests start: this checkout, CPU devices, one cache of programs for all, compiled as for users."""
    return {**environment_of_users(), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def alone(environment, tmp_path_factory) -> Result:
    """The run in one process on one device."""
    path = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([sys.executable, "-m", "experiments.train", *RUN, "--devices=1", f"--workdir={path}"], env=environment, check=True,
                   capture_output=True, timeout=300)
    return result(path)


@pytest.fixture
def shell(tmp_path, environment):
    """Runs a command where the programs of clusters are stand-ins; gives what came of it and the calls they saw."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "sbatch", "gcloud", "kubectl", "tar", "pip", "python3"):
        body = f'exec {sys.executable} "$@"' if name == "python3" else f'exec -a {name} {sys.executable} {programs / "standin" / name} "$@"'
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    (programs / "standin").mkdir()
    for name in ("srun", "sbatch", "gcloud", "kubectl", "tar", "pip"):
        (programs / "standin" / name).write_text((pathlib.Path(__file__).parent / "standin.py").read_text())
    (tmp_path / "a run.flags").write_text("".join(f"{flag}\n" for flag in RUN))

    def call(*argv: str, real: tuple[str, ...] = (), **more: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        for name in real:
            (programs / name).unlink()
        env = {**environment, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "STANDIN": str(tmp_path), "PYTHON": "python3", **more}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=500)
        log = tmp_path / "log"
        return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return call
