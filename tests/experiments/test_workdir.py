"""What a run leaves behind: complete, reproducible, and enough to predict with."""
from __future__ import annotations

import itertools
import json
import re

import jax
import numpy as np
import pytest

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import workdir
from fedjax_lab.data import sources

CLIENTS = {f"client_test_accuracy_{k}" for k in ("mean", "worst_decile", "std", *(f"q{q}" for q in range(0, 101, 10)))}
KEYS = {"round", "seconds", "test_accuracy", "test_loss", "bytes_up", "bytes_down", "flops"} | CLIENTS


def test_files(plain):
    done = plain
    names = {p.name for p in done.path.iterdir()}
    assert names == {"config.json", "run.flags", "partition.json", "partition.npz", "metrics.jsonl", "curves.png", "partition.png", "checkpoint"}
    assert all((done.path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("curves", "partition"))
    versions = json.loads((done.path / "config.json").read_text())["versions"]
    assert versions["jax"] == jax.__version__ and versions["fedjax_lab"] == fedjax_lab.__version__


def test_metrics(job):
    rows = workdir.history(str(job("--eval_every=3").path))
    assert [row["round"] for row in rows] == [0, 3, 4]
    assert set(rows[0]) == KEYS and all(set(row) == KEYS | {"train_loss"} for row in rows[1:])
    assert all(row["client_test_accuracy_q0"] <= row["client_test_accuracy_q50"] <= row["client_test_accuracy_q100"] for row in rows)
    parameters = 64 * 10 + 10
    for row in rows:
        assert row["bytes_up"] == row["bytes_down"] == row["round"] * 3 * parameters * 4
    assert all(b["seconds"] > a["seconds"] for a, b in itertools.pairwise(rows))
    assert all(0 <= row["client_test_accuracy_worst_decile"] <= row["client_test_accuracy_mean"] <= 1 for row in rows)


@pytest.mark.full
def test_metrics_of_personal_models(job):
    rows = job("--method=fedavgft").rows
    assert all({f"personal_{k}" for k in CLIENTS} <= set(row) for row in rows)
    assert rows[-1]["personal_client_test_accuracy_mean"] != rows[-1]["client_test_accuracy_mean"]


@pytest.mark.full
@pytest.mark.parametrize("given", [
    ("--set=lr=0.03", "--set=batch_size=full", "--set=client_optimizer=momentum:0.5,nesterov=true", "--seed=3"),
    ("--method=fedprox", "--set=mu=0.3", "--task=digits_mlp:widths=8/4", "--partition=longtail:2+shards:2", "--client_test=0.25"),
])
def test_run_flags_run_it_again(job, given):
    first = job(*given)
    again = job(f"--flagfile={first.path / 'run.flags'}", base=())
    assert (first.status, again.status) == (0, 0), again.err
    assert first.rows == again.rows
    assert (first.path / "run.flags").read_text() == (again.path / "run.flags").read_text()


def test_flags_of_every_method_read_back():
    """Options of every type survive the way through text."""
    for options in ({"lr": 0.1, "batch_size": "full"}, {"lr": 1e-7, "local_steps": 3, "client_optimizer": "adam:b1=0.5"}):
        flags = configs.flags(configs.make({"method": "fedavg", "options": options, "target_accuracy": 0.5, "chunk": 4, "rounds": 7}))
        text = dict(flag.removeprefix("--set=").removeprefix("--").split("=", 1) for flag in flags)
        assert {k: text[k] for k in options} == {k: str(v) for k, v in options.items()}
        assert configs.make({k: v for k, v in text.items() if k not in options}) == configs.make({"target_accuracy": 0.5, "chunk": 4, "rounds": 7})


@pytest.mark.parametrize("task", ["digits_logreg", pytest.param("digits_mlp:widths=32/32", marks=pytest.mark.full)])
def test_load_predicts_what_was_reported(job, task):
    done = job(f"--task={task}", "--rounds=1")
    model, test = fedjax_lab.load(str(done.path)), sources.digits().test
    right = np.argmax(model.predict(test["x"]), -1) == test["y"]
    assert model.task.name == task
    assert right.mean() == pytest.approx(done.rows[-1]["test_accuracy"], abs=1e-6)


def test_load_refuses_what_is_no_run(job, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        fedjax_lab.load(str(tmp_path))
    broken = job("--set=lr=1e30", "--eval_every=1", "--task=digits_mlp:widths=4")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        fedjax_lab.load(str(broken.path))


def test_python_call_is_the_same_run(plain):
    run = fedjax_lab.train(task="digits_logreg", clients=8, cohort=3, rounds=4, eval_every=2, devices=1)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in run.history] == plain.rows


def test_default_folder(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = job("--workdir=", "--rounds=1")
    assert done.status == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"fedavg-digits_logreg-\d{8}-\d{6}", folder.name) and str(folder.relative_to(tmp_path)) in done.out
