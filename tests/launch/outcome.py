"""The run that the tests of this folder make in many ways, and what is left of it."""
from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from etils import epath

from fedjax_lab import workdir
from fedjax_lab.engine import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
RUN = ("--task=digits_logreg", "--method=scaffold", "--clients=8", "--cohort=3", "--rounds=4", "--eval_every=2")


class Result(NamedTuple):
    """What a run left behind: every array of its last checkpoint, and its rows without the seconds."""

    arrays: dict[str, np.ndarray]
    rows: list[dict[str, float]]


def result(path: pathlib.Path) -> Result:
    saved = checkpoint.newest(epath.Path(path) / "checkpoint", "state", "model")
    arrays = {group + name: array for group, found in saved.groups.items() for name, array in found.items()}
    return Result(arrays, [{k: v for k, v in row.items() if k != "seconds"} for row in workdir.history(str(path))])


def same_bits(a: Result, b: Result) -> bool:
    return a.rows == b.rows and a.arrays.keys() == b.arrays.keys() and all(a.arrays[k].tobytes() == b.arrays[k].tobytes() for k in a.arrays)
