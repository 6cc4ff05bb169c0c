"""What is installed without the checkout is whole: flags files, notebooks and launch scripts come along."""
from __future__ import annotations

import pathlib
import runpy
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def settings(monkeypatch):
    """The arguments that setup.py gives to setuptools."""
    given = {}
    stand_in = types.SimpleNamespace(setup=lambda **more: given.update(more), find_packages=lambda include: include)
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_every_file_that_programs_and_users_start_from_is_packaged(settings):
    packaged = {path for package, patterns in settings["package_data"].items() for pattern in patterns for path in (ROOT / package).glob(pattern)}
    wanted = {path for package in ("experiments", "launch") for end in ("flags", "ipynb", "sbatch", "sh") for path in (ROOT / package).rglob(f"*.{end}")}
    assert wanted <= packaged and len(wanted) > 15


def test_every_pattern_and_package_is_there(settings):
    assert all(list((ROOT / package).glob(pattern)) for package, patterns in settings["package_data"].items() for pattern in patterns)
    assert all((ROOT / name.removesuffix("*") / "__init__.py").exists() for name in settings["packages"])
