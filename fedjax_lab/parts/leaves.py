"""Choosing leaves of a model by what they are called."""
from __future__ import annotations

import jax

from fedjax_lab.types import Tree


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
