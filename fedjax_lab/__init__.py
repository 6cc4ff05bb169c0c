"""fedjax_lab: federated learning as one accelerator call.

Clients are vmapped pure functions over stacked parameters; a paper's algorithm is written once, for one client and one server.
"""
from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "config", "Diverged": "run", "Model": "run", "Run": "run", "train": "run", "prepare": "run", "rounds": "run",
    "load": "workdir", "make_task": "models", "classification": "models", "from_arrays": "data.population",
}


def __getattr__(name: str):
    """Public names load when first needed, so that importing the package stays light."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedjax_lab' has no attribute '{name}'; public: {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(f"fedjax_lab.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
