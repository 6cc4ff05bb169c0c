"""Leaves of a model by what they are called."""
from __future__ import annotations

from typing import Any

import jax

from fedjax_lab.types import Tree


def paths(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, in the order of the leaves.

    >>> paths({"body": {"kernel": 1, "bias": 2}, "head": 3})
    {'body/bias': 2, 'body/kernel': 1, 'head': 3}
    """
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def named(params: Tree, *words: str) -> Tree:
    """True for the leaves on whose path one of the words occurs, in any case.

    Raises:
      ValueError: there is no such leaf; the line names the model's leaves.
    """
    paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/").lower(), params)
    chosen = jax.tree.map(lambda path: any(word in path for word in words), paths)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(f"the model has no leaf named '{' or '.join(words)}'; it has {', '.join(jax.tree.leaves(paths))}")
    return chosen
