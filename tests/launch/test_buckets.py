"""Data and runs on gs://, where a folder of this machine stands in for the bucket."""
from __future__ import annotations

import pathlib

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from fedjax_lab import run, workdir

SETTINGS = {"task": "npz_logreg:path=set.npz", "clients": 4, "cohort": 2, "rounds": 2, "eval_every": 1, "devices": 1, "options": {"lr": 0.1}}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that gs:// names are looked up in; orbax, which has a client of its own for buckets, is led there too."""
    import orbax.checkpoint as ocp

    def local(path) -> str:
        return str(path).replace("gs://", f"{tmp_path}/")

    class Bucket(LocalFileSystem):
        protocol, cachable = ("gs",), False

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(local(path))

    monkeypatch.setitem(fsspec.registry.target if hasattr(fsspec.registry, "target") else fsspec.registry, "gs", Bucket)
    real = ocp.CheckpointManager
    monkeypatch.setattr(ocp, "CheckpointManager", lambda folder, **more: asked.append(str(folder)) or real(epath.Path(local(folder)), **more))
    asked: list[str] = []
    return tmp_path, asked


def test_a_run_reads_from_a_bucket_and_writes_to_it(bucket, tmp_path):
    root, asked = bucket
    ...
