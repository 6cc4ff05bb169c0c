"""Sources by name: `load("digits")`, `load("mnist")`, `load("npz:digits.npz")`, `load("synthetic:1,beta=1")`."""
from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import metadata

import numpy as np

from fedjax_lab import spec
from fedjax_lab.data import folders, known, source
from fedjax_lab.data.crowd import crowd
from fedjax_lab.data.files import adult, citeseer, cora, ml_latest_small, stocks
from fedjax_lab.data.folders import omniglot_small
from fedjax_lab.data.quadratic import quadratic
from fedjax_lab.data.source import Source
from fedjax_lab.data.synthetic import logistic, regression, synthetic
from fedjax_lab.data.text import ag_news_small, shakespeare_roles, sst2_sentences

Folder = str | os.PathLike | None


def digits() -> Source:
    """The UCI digits that scikit-learn embeds: x float32 [M, 8, 8, 1] in [0, 1], 10 classes, 1442 train and 355 test.

    The split is fixed: of each class, every fifth example in scikit-learn's order is test.

    Raises:
      ValueError: scikit-learn's digits are not the ones that this library knows.
    """
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")  # importing it would take longer than all the rest
    x, y = np.split(np.loadtxt(file, delimiter=","), [64], axis=1)
    y = y[:, 0]
    known.assert_arrays("digits", source.digest({"x": x.astype(np.float32), "y": y.astype(np.int32)}))
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int32)
    place = np.zeros(len(y), np.int64)
    for c in range(10):
        place[y == c] = np.arange((y == c).sum())
    test = place % 5 == 4
    return source.make("digits", {"x": x[~test], "y": y[~test]}, {"x": x[test], "y": y[test]}, 10)


def npz(*, path: str, name: str | None = None) -> Source:
    """A file with x_train, y_train, x_test, y_test, and optionally client_train and client_test, whole numbers that name clients.

    uint8 images become float32 in [0, 1], and a missing channel axis is added.

    Args:
      path: the .npz file.
      name: what to call the source; the file's name by default.

    Raises:
      ValueError: the file is missing, or lacks one of the four arrays.
    """
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise ValueError(f"source 'npz:{path}' not found: there is no such file")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as z:
        arrays = {field: z[field] for field in z.files}
    missing = [f for f in ("x_train", "y_train", "x_test", "y_test") if f not in arrays]
    if missing:
        raise ValueError(f"source 'npz:{path}' lacks {', '.join(missing)}; it has {', '.join(arrays)}")
    train, test = ({"x": source.images(arrays[f"x_{side}"]), "y": _labels(arrays[f"y_{side}"])} for side in ("train", "test"))
    classes = int(max(train["y"].max(), test["y"].max())) + 1 if train["y"].dtype == np.int32 else 0
    keys, test_keys = ({"client": arrays[f"client_{side}"]} if f"client_{side}" in arrays else {} for side in ("train", "test"))
    return source.make(name or file.name.removesuffix(".npz"), train, test, classes, keys, test_keys)


def _labels(y: np.ndarray) -> np.ndarray:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    return y.astype(np.int32 if np.issubdtype(y.dtype, np.integer) else np.float32)


def domains(*, sources: tuple[str, ...], data_dir: Folder = None, cache_dir: Folder = None) -> Source:
    """Several image sources of the same classes as domains, such as domains:mnist/digits; images take the largest one's shape.

    The key "domain" says where an example comes from; `--partition=domains+dirichlet:0.3` deals each domain to its own clients.

    Args:
      sources: names, at least two.

    Raises:
      ValueError: a single source, other than images, or different numbers of classes.
    """
    parts = [load(name, data_dir, cache_dir) for name in sources]
    shapes = [part.train["x"].shape for part in parts]
    if len(parts) < 2 or any(len(shape) != 4 for shape in shapes) or len({part.classes for part in parts}) > 1:
        raise ValueError(f"domains '{'/'.join(sources)}' are not valid; expected at least two image sources of equal classes; "
                         f"shapes {[list(shape[1:]) for shape in shapes]}, classes {[part.classes for part in parts]}")
    shape = [max(s[axis] for s in shapes) for axis in (1, 2, 3)]
    sides, keys = [], []
    for side in ("train", "test"):
        arrays = [getattr(part, side) for part in parts]
        sides.append({"x": np.concatenate([source.resized(a["x"], *shape) for a in arrays]),
                      "y": np.concatenate([a["y"] for a in arrays])})
        keys.append({"domain": np.repeat(np.arange(len(parts)), [len(a["y"]) for a in arrays])})
    return source.make("/".join(sources), *sides, parts[0].classes, *keys, domains=list(sources))


SOURCES: dict[str, Callable[..., Source]] = {f.__name__: f for f in (
    digits, npz, domains, synthetic, regression, logistic, quadratic, shakespeare_roles, sst2_sentences, ag_news_small,
    omniglot_small, adult, ml_latest_small, stocks, cora, citeseer, crowd)}


def load(text: str, data_dir: Folder = None, cache_dir: Folder = None) -> Source:
    """The source that a flag names, NAME[:VALUE][,arg=value...]. A name that is not in SOURCES is a tensorflow-datasets folder.

    Args:
      text: for example "digits", "mnist", "npz:FILE", "synthetic:0.5,beta=0.5,clients=100".
      data_dir: where folders are looked for, as given and with /tfds appended; the environment's FEDJAX_LAB_DATA by default.
      cache_dir: where decoded arrays are kept; $XDG_CACHE_HOME/fedjax_lab or ~/.cache/fedjax_lab by default.

    Raises:
      ValueError: unknown options, a set that was not found (one line with where it looked and how to get it), or one that does not
        hold what its name promises (data/known.py).
    """
    name, positional, values = spec.parse(text)
    factory = SOURCES.get(name)
    if factory is None:
        if positional or values:
            raise ValueError(f"'{name}' has no options; sources with options: {', '.join(SOURCES)}")
        try:
            return known.asserted(folders.classification(name, data_dir, cache_dir))
        except source.NotFound as error:
            raise ValueError(f"{error}; or choose a built-in source: {spec.nearest(name, SOURCES)}") from None
    places = {"data_dir": data_dir, "cache_dir": cache_dir}
    places = {k: v for k, v in places.items() if k in inspect.signature(factory).parameters}
    options = spec.bind(factory, positional, values, name=name)
    made = factory(**places, **options)
    return made if options else known.asserted(made)
