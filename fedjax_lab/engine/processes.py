"""What the processes of one run say to each other. Every function is called by all of them, at the same point of the program.

Decisions that hang on a clock, a signal or a file are taken by one process for all: processes that go different ways wait for each
other forever. A process that is alone talks to nobody.
"""
from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax_lab.engine import mesh as meshes
from fedjax_lab.types import Tree

T = TypeVar("T")


def leads() -> bool:
    """Whether this is process 0, the only one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(*numbers: int) -> np.ndarray:
    """int32 [P, n]: the numbers of all P processes. Whoever comes early waits for the others."""
    own = np.array(numbers, np.int32)
    return np.asarray(multihost_utils.process_allgather(own)) if jax.distributed.is_initialized() else own[None]


def first(make: Callable[[], T]) -> T:
    """What process 0 makes, in all processes; an error that it makes is raised in all."""
    if not jax.distributed.is_initialized():
        return make()
    made = error = None
    if leads():
        try:
            made = make()
        except Exception as caught:  # noqa: BLE001 (raised below, by all)
            error = caught
    text = np.frombuffer(pickle.dumps((made, error)), np.uint8)
    size = int(gather(len(text))[0, 0])
    made, error = pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(text, size)).tobytes())
    if error is not None:
        raise error
    return made


def each(make: Callable[[], T]) -> T:
    """What every process makes for itself; where one fails, all do, and the others say so."""
    made = error = None
    try:
        made = make()
    except Exception as caught:  # noqa: BLE001 (raised below, by all)
        error = caught
    failed = np.flatnonzero(gather(error is not None)[:, 0])
    if error is not None:
        raise error
    if len(failed):
        raise ValueError(f"process {failed[0]} failed, and said why; the others end with it")
    return made


def agree(what: str, text: str) -> None:
    """Makes sure that all processes hold the same text.

    Raises:
      ValueError: in all processes, if one holds another.
    """
    sums = gather(np.uint32(zlib.crc32(text.encode())).astype(np.int32))[:, 0]
    for process in np.flatnonzero(sums != sums[0]):
        raise ValueError(f"{what} of process {process} is not that of process 0; every process needs the same flags and the same data")


def whole(tree: Tree) -> Tree:
    """Arrays on the host, whichever devices of whichever processes hold them; random keys as keys of this process alone."""
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_whole(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return np.asarray(x if not isinstance(x, jax.Array) or x.is_fully_addressable else meshes.joined(x))
