"""Trees on disk, by orbax: written whole or not at all."""
from __future__ import annotations

import os
from typing import Any

from fedjax_lab.types import Tree


def save(path: str | os.PathLike, tree: Tree) -> None:
    """Writes a tree of arrays to a new folder."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(os.path.abspath(path), tree)


def restore(path: str | os.PathLike, like: Tree | None = None) -> Any:
    """Reads a tree; `like` gives structure, shapes and shardings, without it the tree is made of dicts, lists and numpy arrays.

    Raises:
      FileNotFoundError: there is no checkpoint at this path.
    """
    import orbax.checkpoint as ocp

    if not os.path.isdir(path):
        raise FileNotFoundError(f"no checkpoint at {path}")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(os.path.abspath(path), like)
