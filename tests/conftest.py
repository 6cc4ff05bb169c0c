from __future__ import annotations

import gc
import os
import pathlib

import jax
import pytest

# What is computed is tested, not the compiler: programs compile in a quarter of the time and run longer. XLA reads this once, before any
# backend starts, and the last of two contradicting flags counts: XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
# compiles as for users.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_num_cpu_devices", 4)  # before any backend starts: the mesh of the tests
gc.set_threshold(2000, 10, 100)  # traces are many objects that live long


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
