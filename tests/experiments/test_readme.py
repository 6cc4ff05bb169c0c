"""The README's examples run as they stand."""
from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
START = re.search(r"## Start\n.*?```bash\n(.*?)```", TEXT, re.DOTALL)[1].splitlines()
SMALL = ("--task=digits_logreg", "--clients=8", "--cohort=3", "--rounds=2", "--eval_every=1", "--devices=1", "--set=batch_size=full")
QUICKLY = {"train": SMALL, "partition": (), "compare": (*SMALL, "--seeds=2"), "report": ()}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(EXAMPLES[number])
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    if "print" in EXAMPLES[number]:
        assert float(done.stdout.split()[0]) > 0.6, done.stdout


@pytest.mark.full
def test_from_a_fresh_clone_to_a_comparison_and_a_report(tmp_path, programs):
    """The commands at the README's start, at small size, one after the other as a user types them."""
    install, *commands = [shlex.split(line) for line in START]
    assert len(START) <= 5 and install == ["pip", "install", "-e", "."]
    assert [command[:2] + [command[2].removeprefix("experiments.")] for command in commands] == [["python", "-m", name] for name in QUICKLY]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(programs), "JAX_PLATFORMS": "cpu"}
    for (_, *words), more in zip(commands, QUICKLY.values(), strict=True):
        done = subprocess.run([sys.executable, *words, *more], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "runs" / "three" / "table.md").read_text()
    assert all(f"| {name} |" in re.sub(" +", " ", table) for name in ("fedavg", "scaffold", "fedspeed"))
    for picture in ("first/curves", "clients/partition", "three/curves"):
        assert (tmp_path / "runs" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "runs" / "three" / "report.html").read_text()
    assert report.rstrip().endswith("</html>") and all(f"{name}-seed1" in report for name in ("fedavg", "scaffold", "fedspeed"))


def test_every_program_that_is_named_is_there():
    for name in set(re.findall(r"python -m ([a-z_.]+)", TEXT)):
        assert importlib.util.find_spec(name), name
    for file in set(re.findall(r"(?:launch|experiments|tests)/[\w./-]+", TEXT)):
        assert (ROOT / file.rstrip(".")).exists(), file


def test_own_method_is_short():
    example = next(e for e in EXAMPLES if "@method" in e)
    assert len([line for line in example.splitlines() if line.strip()]) < 40


def test_pictures_exist():
    assert all((ROOT / path).exists() for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
