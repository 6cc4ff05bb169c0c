"""Client tables that live off the devices, in host memory or in files, and how a checkpoint holds them.

Only rows that were ever written count: a checkpoint has these, and reads and writes them in blocks, so that memory does not follow
the table.
"""
from __future__ import annotations

import json
import mmap
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fedjax_lab.engine import processes
from fedjax_lab.engine.stream import NOBODY, Share
from fedjax_lab.types import Tree

BLOCK = 1 << 24  # bytes that are read or written together


class Rows(NamedTuple):
    """A client table off the devices, as part of State: arrays [N, ...] on the host, and whose row was ever written, bool [N]."""

    rows: Tree
    known: np.ndarray


class Table:
    """Reads and writes the rows of a segment's clients. A row that was never written is a first one.

    Args:
      clients: N.
      like: shapes of the rows of some clients [n, ...].
      where: "host", or "disk" for files that have no name and end with the process, in the folder that TMPDIR names.

    Raises:
      ValueError: a row holds random keys, which only devices hold.
    """

    def __init__(self, clients: int, like: Tree, where: str):
        if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in jax.tree.leaves(like)):
            raise ValueError(f"client_state={where}: the method's rows hold random keys; choose device")
        self._like, self._clients, self._where = like, clients, where

    def new(self) -> Rows:
        """The table before the first round."""
        rows = jax.tree.map(lambda x: self._blank((self._clients, *x.shape[1:]), x.dtype), self._like)
        return Rows(rows, self._blank((self._clients,), bool))

    def _blank(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        if self._where == "host" or not size:
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            space = mmap.mmap(file.fileno(), size)
        space.madvise(mmap.MADV_RANDOM)  # rows are read by themselves, not with those around them
        return np.frombuffer(space, dtype).reshape(shape)

    def read(self, table: Rows, share: Share, fresh: Tree) -> Tree:
        """The rows [U, ...] of a share, `fresh` where none was written."""
        ids = np.minimum(np.asarray(share.facts.id), self._clients - 1)
        known = table.known[ids]
        return jax.tree.map(lambda t, new: np.where(known.reshape(-1, *[1] * (t.ndim - 1)), t[ids], new), table.rows, processes.whole(fresh))

    def write(self, table: Rows, share: Share, rows: Tree) -> Rows:
        """The table with a segment's rows written into it, in place."""
        ids = np.asarray(share.facts.id)
        there = ids != NOBODY
        for into, new in zip(jax.tree.leaves(table.rows), jax.tree.leaves(processes.whole(rows)), strict=True):
            into[ids[there]] = new[there]
        table.known[ids[there]] = True
        return table


def is_rows(x: Any) -> bool:
    """Whether this is a client table, a leaf of a state in its own right."""
    return isinstance(x, Rows)


def write(folder: epath.Path, tables: Mapping[str, Rows]) -> None:
    """Writes the known rows of tables {path in the state: table}, a file per array, and last what they are."""
    about = {}
    for path, table in tables.items():
        ids = np.flatnonzero(table.known)
        for at, leaf in jax.tree_util.tree_leaves_with_path(table.rows):
            name, total = f"{len(about):06d}", 0
            with (folder / name).open("wb") as file:
                for some in blocks(len(ids), leaf):
                    data = np.ascontiguousarray(leaf[ids[some]]).tobytes()
                    file.write(data)
                    total = zlib.crc32(data, total)
            about[f"{path}.rows{jax.tree_util.keystr(at)}"] = [name, str(leaf.dtype), (len(ids), *leaf.shape[1:]), total]
    text = json.dumps(about)
    (folder / "about").write_text(f"{zlib.crc32(text.encode()):08x}{text}")


def read(folder: epath.Path) -> dict[str, np.ndarray]:
    """{path in the state: rows [known, ...]} as `write` left them, mapped where the folder is of this machine.

    Raises:
      ValueError: a file is damaged.
    """
    text, found = (folder / "about").read_text(), {}
    wrong = f"{zlib.crc32(text[8:].encode()):08x}" != text[:8]
    for path, (name, dtype, shape, expected) in json.loads(text[8:]).items():
        data, total = _bytes(folder / name), 0
        for some in blocks(len(data), data):
            total = zlib.crc32(data[some], total)
        wrong |= total != expected
        found[path] = data.view(jnp.dtype(dtype)).reshape(shape)
    if wrong:
        raise ValueError("its checksum is wrong")
    return found


def _bytes(file: epath.Path) -> np.ndarray:
    if "://" in str(file) or not file.stat().length:
        return np.frombuffer(file.read_bytes(), np.uint8)
    return np.memmap(file, np.uint8, "r")


def fill(leaf: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A table's array with these clients' rows written into it, in place."""
    for some in blocks(len(ids), leaf):
        leaf[ids[some]] = rows[some]
    return leaf


def blocks(rows: int, like: np.ndarray) -> Iterator[slice]:
    """Slices of so many rows, of about BLOCK bytes each."""
    step = max(1, BLOCK // max(1, like.dtype.itemsize * int(np.prod(like.shape[1:]))))
    return (slice(start, start + step) for start in range(0, rows, step))


__all__ = ["Rows", "Table", "blocks", "fill", "is_rows", "read", "write"]
