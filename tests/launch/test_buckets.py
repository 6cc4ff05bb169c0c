"""Data and runs on gs://, where a folder of this machine stands in for all buckets."""
from __future__ import annotations

import importlib

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from fedjax_lab import run, tasks, workdir
from fedjax_lab.data import files, known, source

SETTINGS = {"clients": 4, "cohort": 2, "rounds": 2, "eval_every": 1, "devices": 1, "options": {"lr": 0.1}}


class Buckets(LocalFileSystem):
    """gs://bucket/... as root/bucket/...; epath makes one and keeps it."""

    protocol, root = ("gs",), ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", f"{cls.root}/"))


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """The folder of the buckets, and the folders that orbax is given: it has a client of its own for gs://, and is led away from it."""
    import orbax.checkpoint as ocp

    def led(real, at):
        def call(*args, **more):
            asked.append(str(args[at]))
            local = epath.Path(str(args[at]).replace("gs://", f"{tmp_path}/"))
            return real(*args[:at], local, *args[at + 1 :], **more)

        return call

    asked: list[str] = []
    monkeypatch.setattr(Buckets, "root", str(tmp_path))
    for name in ("gs", "gcs"):
        monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, name, Buckets)
    monkeypatch.setattr(ocp, "CheckpointManager", led(ocp.CheckpointManager, 0))
    monkeypatch.setattr(ocp.Checkpointer, "restore", led(ocp.Checkpointer.restore, 1))
    monkeypatch.delenv("FEDJAX_LAB_DATA", raising=False)
    return tmp_path, asked


def npz(path) -> None:
    path.parent.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {f"x_{side}": generator.normal(size=(40, 6)).astype(np.float32) for side in ("train", "test")}
    np.savez(path, **arrays, **{f"y_{side}": (arrays[f"x_{side}"][:, 0] > 0).astype(np.int64) for side in ("train", "test")})


def test_data_are_found_and_read_in_a_bucket(buckets):
    npz(buckets[0] / "bucket" / "data" / "sub" / "set.npz")
    assert str(source.find("set", ("sub/set.npz",), "gs://bucket/data", "")) == "gs://bucket/data/sub/set.npz"
    with pytest.raises(ValueError, match="gs://bucket/data/other.npz"):
        files.read("set", "other.npz", "gs://bucket/data")


def test_a_set_of_a_data_folder_in_a_bucket(buckets, monkeypatch):
    folder = buckets[0] / "bucket" / "data"
    (folder / "series").mkdir(parents=True)
    prices = np.exp(np.random.default_rng(0).normal(size=(120, 3)))
    np.savez(folder / "series" / "stocks.npz", adj_close=prices, ticker=np.array(["A", "B", "C"]))
    monkeypatch.setattr(known, "assert_arrays", lambda name, sha256: None)  # these prices are made up
    local, away = (tasks.load("stocks_logreg:window=4", where)[0] for where in (str(folder), "gs://bucket/data"))
    assert len(away.train["x"]) and away.manifest == local.manifest
    for side in ("train", "test"):
        np.testing.assert_array_equal(getattr(away, side)["x"], getattr(local, side)["x"])


def test_a_run_begins_goes_on_and_ends_in_a_bucket(buckets, tmp_path):
    root, asked = buckets
    npz(root / "bucket" / "set.npz")
    settings = {**SETTINGS, "task": "npz_logreg:path=gs://bucket/set.npz", "method": "scaffold", "client_state": "disk",
                "cache_dir": str(tmp_path / "cache")}
    for rounds in (2, 4):
        done = run.train(**{**settings, "rounds": rounds}, workdir="gs://bucket/runs/one")
    assert [row["round"] for row in workdir.history("gs://bucket/runs/one")] == [0, 1, 2, 3, 4]
    whole = run.train(**{**settings, "rounds": 4})
    assert [r["test_loss"] for r in done.history] == [r["test_loss"] for r in whole.history]
    there = {p.name for p in (root / "bucket" / "runs" / "one").iterdir()}
    assert {"config.json", "run.flags", "metrics.jsonl", "curves.png", "checkpoint"} <= there
    assert set(asked) >= {"gs://bucket/runs/one/checkpoint", "gs://bucket/runs/one/checkpoint/00000002"}
    x = np.zeros((1, 6), np.float32)
    np.testing.assert_array_equal(workdir.load("gs://bucket/runs/one").predict(x), whole.model.predict(x))
