"""fedjax_lab: federated learning as one accelerator call.

Clients are vmapped pure functions over stacked parameters; a paper's algorithm is written once, for one client and one server.

What is listed here is public: `fedjax_lab.train` and the other names of HERE, and the names of THERE from their modules
(`from fedjax_lab.types import Method`). Everything else may change without notice.
"""
from __future__ import annotations

import importlib

__version__ = "0.1.0"

HERE = {
    "Config": "config", "Diverged": "run", "Model": "run", "Prepared": "run", "Progress": "run", "Run": "run", "train": "run",
    "prepare": "run", "rounds": "run", "load": "workdir", "from_arrays": "data.population", "make_task": "models",
    "classification": "models", "regression": "models",
}
"""Public names of the package itself, and the module that each comes from."""

THERE = {
    "keys": ("purpose",),
    "local": ("Batches", "Descent", "Work", "batches", "descend", "gradient", "loop", "with_stats"),
    "many": ("Trained", "train"),
    "registry": ("catalog", "make", "method", "part"),
    "rules": ("identity", "mean", "total"),
    "spec": ("Count", "NonNegative", "Positive", "Range", "Share"),
    "tree": ("add", "axpy", "finite", "nbytes", "norm", "scale", "select", "size", "strong", "sub", "trainable", "vdot", "zeros_like"),
    "types": ("Aux", "Batch", "Census", "ClientData", "Cohort", "Draw", "Facts", "Info", "Key", "Method", "Participation", "Phase",
              "Population", "Record", "Result", "Simulation", "Stacked", "State", "Stream", "Streaming", "Task", "Tree", "View", "Wire"),
}
"""Public modules and their public names."""


def __getattr__(name: str):
    """Public names load when first needed, so that importing the package stays light."""
    if name in THERE:
        return importlib.import_module(f"fedjax_lab.{name}")
    if name not in HERE:
        raise AttributeError(f"module 'fedjax_lab' has no attribute '{name}'; public: {', '.join([*HERE, *THERE])}")
    return getattr(importlib.import_module(f"fedjax_lab.{HERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*HERE, *THERE, "__version__"])
