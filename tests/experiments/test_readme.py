"""The README's examples run as they stand."""
from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(EXAMPLES[number])
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    if "print" in EXAMPLES[number]:
        assert float(done.stdout.split()[0]) > 0.6, done.stdout


def test_own_method_is_short():
    example = next(e for e in EXAMPLES if "@method" in e)
    assert len([line for line in example.splitlines() if line.strip()]) < 40


def test_pictures_exist():
    assert all((ROOT / path).exists() for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
