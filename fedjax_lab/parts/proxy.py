"""The public examples: who holds them, and training on them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab.local import Batches, Work, batches
from fedjax_lab.types import Census, Key, Stream, View

UNLIMITED = jnp.iinfo(jnp.int32).max


class Proxy(NamedTuple):
    """The public examples, as `local.batches` wants them."""

    train: View
    allowance: int = UNLIMITED


def view(public: Mapping[str, jax.Array], client: jax.Array | int = 0, *, first: int = 0, last: int | None = None) -> View:
    """The public examples from `first` to before `last` as if they were a client's own; in `local`, say which client's."""
    examples = {k: v[first:last] for k, v in public.items()}
    size = len(next(iter(examples.values())))
    return View(Stream(examples, jnp.zeros(1, jnp.int32), jnp.full(1, size, jnp.int32)), 0 * jnp.int32(client), size)


def epochs(key: Key, public: View, count: int, batch_size: int) -> Batches:
    """Reshuffled epochs of public examples."""
    return batches(key, Proxy(public), Work(0.0, count, 0, batch_size, optax.identity()))


def demanded(name: str, census: Census, least: int = 1) -> None:
    """Checks that there is a public set.

    Raises:
      ValueError: there is none, or fewer than `least` examples.
    """
    if census.public < least:
        raise ValueError(f"'{name}' needs at least {least} public examples, there are {census.public}; "
                         "split some off by --partition=public:500+dirichlet:0.3, for example")

