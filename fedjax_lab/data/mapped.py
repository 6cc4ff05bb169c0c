"""Populations in files: every array is mapped into memory and read where it is touched."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lab.types import Population, Stream

BLOCK = 1 << 24  # bytes that are written together


def mapped(people: Population, folder: str | os.PathLike) -> Population:
    """The same population, its clients' data in files of `folder`; made there once for all runs with an equal manifest.

    Args:
      people: arrays, or anything that is indexed like them; read in blocks.
      folder: for the files, among those of other populations.

    Raises:
      ValueError: the folder cannot be written, or is full.
    """
    digest = hashlib.sha256(json.dumps(people.manifest, sort_keys=True, default=_plain).encode()).hexdigest()[:16]
    home = Path(folder).expanduser() / digest
    if not home.exists():
        try:
            _write(people, home)
        except OSError as error:
            raise ValueError(f"--population=disk: {home.parent} cannot be written ({error.strerror}); choose another --cache_dir") from None
    found = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in _arrays(people)}

    def stream(side: str, old: Stream) -> Stream:
        examples = {k: found[f"{side}-x-{k}"] for k in old.examples} if side == "train" else old.examples
        index = None if old.index is None else found[f"{side}-index"]
        return Stream(examples, found[f"{side}-offset"], found[f"{side}-size"], index)

    return Population(stream("train", people.train), stream("test", people.test), found["counts"], people.manifest, people.public, people.stages)


def _arrays(people: Population) -> Mapping[str, Any]:
    """What goes to files: everything but the central test set."""
    found = {f"train-x-{k}": v for k, v in people.train.examples.items()}
    for side, stream in (("train", people.train), ("test", people.test)):
        found |= {f"{side}-offset": stream.offset, f"{side}-size": stream.size}
        if stream.index is not None:
            found[f"{side}-index"] = stream.index
    return {**found, "counts": people.counts}


def _write(people: Population, home: Path) -> None:
    """Writes all files beside `home` and moves them there when they are whole."""
    home.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=home.parent, prefix="part-"))
    try:
        for name, array in _arrays(people).items():
            into = np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.dtype(array.dtype), tuple(array.shape))
            for rows in pieces(array):
                into[rows] = array[rows]
            into.flush()
        os.rename(part, home)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not home.exists():  # another process may have been faster
            raise


def pieces(array: Any) -> Iterator[slice]:
    """Slices of the leading axis of at most BLOCK bytes."""
    row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize)
    step = max(1, BLOCK // row)
    return (slice(start, min(start + step, array.shape[0])) for start in range(0, array.shape[0], step))


def held(people: Population) -> Population:
    """The same population in arrays of its own."""
    def stream(old: Stream) -> Stream:
        index = None if old.index is None else np.asarray(old.index)
        return Stream({k: np.asarray(v) for k, v in old.examples.items()}, np.asarray(old.offset), np.asarray(old.size), index)

    return Population(stream(people.train), stream(people.test), np.asarray(people.counts), people.manifest, people.public, people.stages)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


__all__ = ["held", "mapped", "pieces"]
