"""tensorflow-datasets folders (ArrayRecord), read without TensorFlow."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedjax_lab.data import source
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.spec import Count

HINT = ("give --data_dir=DIR, or set FEDJAX_LAB_DATA, and put the set there with "
        "`tfds build {0} --file_format=array_record --data_dir=DIR`")


def classification(name: str, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Source:
    """Any set with one image and one class label per record and the splits train and test (or validation).

    Whole-number features other than the label become keys for natural clients.

    Raises:
      ValueError: the folder is missing (says where it looked), or the set has no image or no label.
    """
    arrays = decoded(name, data_dir, cache_dir)
    fields = {field.split("__")[1] for field in arrays}
    image = next((f for f in sorted(fields) if arrays[f"train__{f}"].dtype == np.uint8 and arrays[f"train__{f}"].ndim == 4), None)
    if image is None or "label" not in fields:
        raise ValueError(f"source '{name}' has no image and label of one shape; it has {', '.join(sorted(fields))}")
    last = "test" if f"test__{image}" in arrays else "validation"
    train, test = ({"x": source.images(arrays[f"{side}__{image}"]), "y": arrays[f"{side}__label"].astype(np.int32)}
                   for side in ("train", last))
    keys = {f: arrays[f"train__{f}"] for f in sorted(fields) if f != "label" and arrays[f"train__{f}"].dtype == np.int64}
    return source.make(name, train, test, int(train["y"].max()) + 1, keys)


def decoded(name: str, data_dir: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> Arrays:
    """{split__feature: [M, ...]} of every split and feature: images uint8, numbers int64 or float32, text UTF-8 bytes."""
    path = source.find(name, (name, f"tfds/{name}"), data_dir, HINT.format(name))
    versions = [folder for folder in sorted(path.iterdir()) if (folder / "dataset_info.json").exists()]
    if not versions:
        raise ValueError(f"source '{name}' not found: {path} holds no version of it; {HINT.format(name)}")
    return source.cached(name, versions[-1], cache_dir, lambda: _decode(versions[-1]))


def _decode(path: Any) -> Arrays:
    with _quiet():
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(path))
        return {f"{split}__{feature}": column for split in builder.info.splits
                for feature, column in _columns(builder.as_data_source(split=split)).items()}


def _columns(records: Any, block: int = 1000) -> Arrays:
    blocks: list[dict[str, np.ndarray]] = []
    for start in range(0, len(records), block):
        rows = records.__getitems__(list(range(start, min(start + block, len(records)))))
        blocks.append({name: np.array([row[name] for row in rows]) for name in rows[0] if _regular(rows, name)})
    return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0] if all(name in b for b in blocks)}


def _regular(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a feature is one array of one shape; nested and ragged features are left out."""
    values = [row[name] for row in rows]
    return not isinstance(values[0], (dict, list)) and len({np.shape(v) for v in values}) == 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tfds and array_record report harmless things (no OpenCV, a group size) as errors."""
    import absl.logging

    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity("fatal")
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


def omniglot_small(*, side: Count = 28, data_dir: str | os.PathLike | None = None,
                   cache_dir: str | os.PathLike | None = None) -> Source:
    """Handwritten characters (Lake et al. 2015, both "background small" sets without repetitions): 242 classes of 20 images.

    "x" float32 [M, side, side, 1], ink 1 and paper 0. Natural clients: "drawer" (20) or "alphabet" (8). Of each character every
    fifth drawer is test, another fifth for the next character, so that every drawer and every character is on both sides.

    Args:
      side: images are averaged down from 105 x 105.
    """
    arrays = decoded("omniglot_small", data_dir, cache_dir)
    fields = {f: np.concatenate([arrays[f"{split}__{f}"] for split in ("small1", "small2")]) for f in ("image", "label", "drawer",
                                                                                                       "alphabet")}
    _, first = np.unique(np.stack([fields["label"], fields["drawer"]]), axis=1, return_index=True)
    fields = {f: array[first] for f, array in fields.items()}
    test = (fields["label"] + fields["drawer"]) % 5 == 0
    x = _shrunk(1 - source.images(fields["image"]), side)
    sides = [{"x": x[s], "y": fields["label"][s].astype(np.int32)} for s in (~test, test)]
    keys = [{f: fields[f][s] for f in ("drawer", "alphabet")} for s in (~test, test)]
    return source.make("omniglot_small", *sides, 242, *keys)


def _shrunk(x: np.ndarray, side: int) -> np.ndarray:
    """Area averages of square images [M, H, H, 1] in side x side cells; float32."""
    edges = np.linspace(0, x.shape[1], side + 1)
    cover = np.clip(np.minimum(edges[1:, None], np.arange(1, x.shape[1] + 1)) - np.maximum(edges[:-1, None],
                                                                                           np.arange(x.shape[1])), 0, None)
    cover = (cover / cover.sum(1, keepdims=True)).astype(np.float32)
    averages = np.einsum("ih,mhwc,jw->mijc", cover, x, cover, optimize=True)
    return np.clip(averages, x.min(), x.max())  # weights sum to one only up to rounding
