"""What a source of examples is, and what every source shares: hashes, folders, the cache of decoded arrays."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.data import known
from fedjax_lab.types import Population

Arrays = Mapping[str, np.ndarray]


class NotFound(ValueError):
    """A set that is not where it was looked for."""


class Source(NamedTuple):
    """A set of examples with a fixed split, before anybody owns them.

    name: as it was asked for.
    train, test: {field: [M, ...]}, "x" and "y" for classification; images are float32 in [0, 1], labels int32.
    classes: C, or 0 where "y" is no class.
    manifest: examples, classes, sha256 of the arrays, ready for JSON.
    keys: {name: int32 [M]}, what natural clients go by (role, user, drawer).
    test_keys: the same of the test examples, where the source itself says whose they are.
    truth: ground truth of a generator.
    edges: int32 [E, 2] (from, to) between the examples of a graph, which then are both train and test.
    ready: the population, where the source itself makes one.
    public: {field: [P, ...]} training examples that were split off for all to see, {} if none were.
    """

    name: str
    train: Arrays
    test: Arrays
    classes: int
    manifest: Mapping[str, Any]
    keys: Mapping[str, np.ndarray] = {}
    test_keys: Mapping[str, np.ndarray] = {}
    truth: Mapping[str, np.ndarray] = {}
    edges: np.ndarray | None = None
    public: Mapping[str, np.ndarray] = {}
    ready: Population | None = None

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(next(iter(self.train.values())))


def make(name: str, train: Arrays, test: Arrays, classes: int, keys: Arrays | None = None, test_keys: Arrays | None = None,
         truth: Arrays | None = None, **more: Any) -> Source:
    """A source with its manifest; `more` adds entries to it."""
    keys, test_keys = ({k: np.asarray(v, np.int32) for k, v in (group or {}).items()} for group in (keys, test_keys))
    sides = {"train": train, "test": test, "keys": keys, "test_keys": test_keys}
    manifest = {"source": name, "train_examples": _length(train), "test_examples": _length(test), "classes": classes,
                "fields": {field: [str(array.dtype), *array.shape[1:]] for field, array in train.items()},
                "sha256": digest({f"{side}/{field}": array for side, group in sides.items() for field,
                                  array in group.items()}), **more}
    return Source(name, train, test, classes, manifest, keys, test_keys, truth or {})


def _length(arrays: Arrays) -> int:
    lengths = {field: len(array) for field, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the arrays of a source differ in length: {lengths}")
    return next(iter(lengths.values()))


def digest(arrays: Arrays) -> str:
    """sha256 over names, dtypes, shapes and contents."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return total.hexdigest()


def images(x: np.ndarray) -> np.ndarray:
    """Images as float32 [M, H, W, channels]: whole numbers 0..255 become [0, 1], and a missing channel axis is added."""
    x = np.asarray(x)
    if x.dtype == np.uint8:
        x = x[..., None] if x.ndim == 3 else x
        return x.astype(np.float32) / np.float32(255)
    return x.astype(np.float32, copy=False)


def resized(x: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """Images [M, height, width, channels], interpolated linearly; a gray image is repeated over the channels."""
    from scipy import ndimage

    if x.shape[1:3] != (height, width):
        x = ndimage.zoom(x, (1, height / x.shape[1], width / x.shape[2], 1), order=1, grid_mode=True, mode="nearest")
    return np.repeat(x, channels // x.shape[3], axis=3).astype(np.float32, copy=False)


def find(name: str, paths: tuple[str, ...], data_dir: str | os.PathLike | None, hint: str) -> Any:
    """The first of these relative paths that exists under `data_dir`, else under the folder that FEDJAX_LAB_DATA names.

    Raises:
      NotFound: none exists; the line says where it looked and how to get it.
    """
    from etils import epath

    base = data_dir or os.environ.get("FEDJAX_LAB_DATA")
    looked = [epath.Path(base).expanduser() / path for path in paths] if base else []
    for path in looked:
        if path.exists():
            return path
    where = f"looked for {' and '.join(map(str, looked))}" if base else "neither --data_dir nor FEDJAX_LAB_DATA names a folder"
    raise NotFound(f"source '{name}' not found: {where}; {hint}")


def cached(name: str, path: Any, cache_dir: str | os.PathLike | None, decode: Callable[[], Arrays]) -> Arrays:
    """What `decode` returns, from the cache if it was kept there before from the same files.

    The arrays lie as .npy beside their sha256, which is compared at every load, and with that of the set where it is a known one; an
    entry that differs is thrown away and decoded again. Entries appear whole or not at all. A cache that cannot be written is no
    error.

    Raises:
      ValueError: what is decoded is not the known set of that name.

    Args:
      name: of the set.
      path: the file or folder that is decoded; names, sizes and times of its files identify the entry.
      cache_dir: $XDG_CACHE_HOME/fedjax_lab or ~/.cache/fedjax_lab by default.
    """
    root = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fedjax_lab").expanduser()
    entry = root / f"{name}-{_fingerprint(path)}"
    try:
        arrays = {file.stem: np.load(file) for file in entry.glob("*.npy")}
        sha256 = json.loads((entry / "manifest.json").read_text())["sha256"]
        if sha256 == digest(arrays) and known.same(name, sha256):
            return arrays
    except (OSError, ValueError, KeyError, EOFError):
        pass
    arrays = decode()
    sha256 = digest(arrays)
    known.assert_arrays(name, sha256)
    try:
        _keep(root, entry, arrays, sha256)
    except OSError:
        pass
    return arrays


def _keep(root: Path, entry: Path, arrays: Arrays, sha256: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=root))
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        (fresh / "manifest.json").write_text(json.dumps({"sha256": sha256}))
        shutil.rmtree(entry, ignore_errors=True)
        fresh.rename(entry)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fingerprint(path: Any) -> str:
    from etils import epath

    path = epath.Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(file.name, (stat := file.stat()).length, stat.mtime) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
