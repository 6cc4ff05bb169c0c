from __future__ import annotations

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)  # before any backend starts: the mesh of the tests


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked `full` too (the long matrix)")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: part of the long matrix, run only with --all")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        kept = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data sets; tests that need it are collected only where FEDJAX_LAB_DATA is set."""
    return pathlib.Path(os.environ["FEDJAX_LAB_DATA"])
