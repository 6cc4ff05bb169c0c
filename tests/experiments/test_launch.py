"""The launchers run against stand-ins for srun and gcloud that write down how they were called."""
from __future__ import annotations

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TPU = ("bash", str(ROOT / "launch" / "tpu_vm.sh"))
SLURM = ("bash", str(ROOT / "launch" / "slurm.sbatch"))


@pytest.fixture
def shell(tmp_path):
    """Runs a command where srun, gcloud and tar only log their arguments; gcloud fails on the word in FAIL_ON."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "gcloud", "tar"):
        script = f"""#!/bin/bash\n{{ printf '%q ' {name} "$@" | sed 's/ $//'; echo; }} >> {tmp_path}/log\n"""
        (tmp_path / "bin" / name).write_text(script + 'case "$*" in *"${FAIL_ON:-no such word}"*) exit 7;; esac\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "a run.flags").write_text("--rounds=2\n")

    def call(*argv, **more):
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **more}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    return call


def test_slurm_runs_one_process(shell, tmp_path):
    done, log = shell(*SLURM, "a run.flags", "--set", "lr=0.1", SLURM_SUBMIT_DIR=str(tmp_path), PYTHON="python3")
    assert done.returncode == 0, done.stderr
    assert [shlex.split(line) for line in log] == [[
        "srun", "--nodes=1", "--ntasks=1", "python3", "-m", "experiments.train", "--flagfile=a run.flags", "--set", "lr=0.1"]]


def test_slurm_keeps_the_exit_status(shell):
    assert shell(*SLURM, "a run.flags", FAIL_ON="experiments.train")[0].returncode == 7


def test_slurm_directives_lead_the_file():
    body = (ROOT / "launch" / "slurm.sbatch").read_text().split("set -euo")[0].splitlines()
    assert all(line.startswith("#") for line in body) and "#SBATCH --ntasks=1" in body


def test_tpu_dry_run_prints_exactly_what_is_run(shell, tmp_path):
    arguments = ("pod-1", "us-east1-d", "v4-8", "a run.flags", "out")
    dry, nothing = shell(*TPU, "--dry_run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert nothing == [] and not (tmp_path / "out").exists()
    wet, log = shell(*TPU, *arguments)
    assert wet.returncode == 0 and wet.stdout == dry.stdout and (tmp_path / "out").is_dir()
    printed = [line for line in dry.stdout.splitlines() if not line.startswith(("#", "mkdir"))]
    assert log == printed
    calls = [shlex.split(line) for line in log]
    assert [c[4] if c[0] == "gcloud" else c[0] for c in calls] == ["create", "tar", "scp", "scp", "ssh", "ssh", "scp"]
    assert all("--zone=us-east1-d" in c for c in calls if c[0] == "gcloud") and "--accelerator-type=v4-8" in calls[0]
    assert str(tmp_path / "a run.flags") in calls[3] and "--flagfile=../run.flags" in calls[5][-1]
    assert calls[6][-2:] == ["pod-1:fedjax_lab/runs/*", str(tmp_path / "out")]


def test_tpu_stops_at_the_first_failure(shell):
    done, log = shell(*TPU, "pod-1", "us-east1-d", "v4-8", "a run.flags", FAIL_ON="pip install")
    assert done.returncode == 7 and "pip install" in log[-1].replace("\\", "")


@pytest.mark.parametrize("argv", [(*SLURM,), (*SLURM, "none.flags"), (*TPU, "pod-1"), (*TPU, "n", "z", "t", "none.flags"),
                                  (*TPU, "n", "z", "t", "a run.flags", "out", "more")])
def test_wrong_call_is_one_line(shell, argv):
    done, log = shell(*argv)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "FILE.flags" in done.stderr and log == []
