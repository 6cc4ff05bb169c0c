from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from experiments import bench
from fedjax_lab import run
from fedjax_lab.data import sources

KEYS = {"workload", "seconds_per_round", "compile_seconds", "clients_per_second", "examples_per_second", "peak_rss_mb", "test_accuracy",
        "devices", "chunk", "versions"}


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Sets the flags of the benchmark, apart from those of other programs in this process."""

    def parse(*items):
        monkeypatch.setattr(bench, "FLAGS", flags.FlagValues())
        bench.define()
        bench.FLAGS(["bench", f"--cache_dir={tmp_path}", *items])

    return parse


@pytest.fixture
def halves(tmp_path):
    """A partition file for the digits: 12 clients, the first of 30 examples and the others of 20."""
    index = np.full((12, 30), -1)
    index[0] = np.arange(30)
    index[1:, :20] = 30 + np.arange(220).reshape(11, 20)
    np.savez(tmp_path / "halves.npz", idx=index)
    return tmp_path / "halves.npz"


def test_one_object_with_the_accuracy_of_the_same_run_untimed(given, halves, capsys, monkeypatch):
    made, prepare = [], run.prepare
    monkeypatch.setattr(run, "prepare", lambda config: made.append(prepare(config)) or made[-1])
    given("--workload=digits", "--rounds=2", "--eval_every=2", "--warmup=1", "--devices=1", f"--partition_file={halves}")
    assert bench.main(["bench"]) == 0
    out = capsys.readouterr().out
    row = json.loads(out)
    assert out.count("\n") == 1 and row.keys() >= KEYS and {"fedjax_lab", "jax"} <= row["versions"].keys()
    assert (row["workload"], row["rounds"], row["clients"], row["cohort"], row["devices"], row["chunk"]) == ("digits", 2, 12, 10, 1, 1)
    assert row["clients_per_second"] * row["seconds_per_round"] == pytest.approx(10)
    examples = row["examples_per_second"] * row["seconds_per_round"]
    assert 200 <= round(examples, 6) <= 210  # the quotient and the product round
    assert 0 < row["compile_seconds"] and 30 < row["peak_rss_mb"]
    untimed = made[0]._replace(config=dataclasses.replace(made[0].config, rounds=3))
    assert row["test_accuracy"] == run.follow(untimed).history[-1]["test_accuracy"]


def test_pace_leaves_the_evaluation_out(given, monkeypatch):
    """A clock of its own: an evaluation takes 7 seconds, a round 2, but for the last call, where others held the machine."""
    given("--workload=digits", "--rounds=6", "--eval_every=2", "--warmup=3", "--devices=1")
    prepared, taken = run.prepare(bench.configure("digits")), []

    def clocked(sim, state, clock, count):
        taken.append((clock, count))
        ids = jnp.tile(jnp.arange(10), (2, 1))
        record = type("Record", (), {"rounds": {"ids": ids, "mask": ids < 9}, "evaluation": {"test_accuracy": jnp.float32(0.5)}})
        return state, record, 7.0 + count * (2.0 if clock < 7 else 90.0)

    monkeypatch.setattr(bench, "segment", clocked)
    row = bench.measure(prepared, 3)
    examples = prepared.population.train.size[:9].sum()
    assert taken == [(0, 0), (0, 2), (2, 1), (3, 0), (3, 2), (5, 0), (5, 2), (7, 0), (7, 2)]
    assert (row["seconds_per_round"], row["evaluation_seconds"]) == (2.0, 7.0)
    assert row["examples_per_second"] == examples / 2.0


@pytest.mark.parametrize(("name", "clients", "cohort", "examples", "parameters"), [
    ("w1", 100, 10, 12, 199_210), ("w2", 100, 10, 12, 1_663_370), ("w3", 1_000, 100, 2, 199_210), ("w4", 10_000, 1_000, 1, 7_850)])
def test_workloads_are_the_published_ones(given, tmp_path, name, clients, cohort, examples, parameters):
    """On a file of the right shape, with few examples per client."""
    y = np.arange(clients * examples) % 10
    x = np.zeros((len(y), 28, 28), np.uint8)
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    given(f"--npz={tmp_path / 'few.npz'}", "--devices=1")
    prepared = run.prepare(bench.configure(name))
    plan, config = prepared.simulation.plan, prepared.config
    assert (plan["clients"], plan["cohort"], plan["parameters"]) == (clients, cohort, parameters)
    assert config.options == {"lr": 0.1, "epochs": 1, "batch_size": {"w3": 20, "w4": 6}.get(name, 10)}
    assert (prepared.population.train.size == examples).all()
    classes = (prepared.population.counts > 0).sum(1)
    assert name not in ("w1", "w2") or classes.max() <= 4  # two shards, each across one border of classes at most


def test_npz_is_read(given, tmp_path):
    source = sources.digits()
    arrays = {f"{k}_{side}": getattr(source, side)[k] for k in "xy" for side in ("train", "test")}
    np.savez(tmp_path / "digits.npz", **arrays)
    given(f"--npz={tmp_path / 'digits.npz'}", "--devices=1")
    train = run.prepare(bench.configure("w1")).population.train.examples
    assert sorted(train["y"]) == sorted(source.train["y"])
    assert train["x"].sum(dtype=np.float64) == pytest.approx(source.train["x"].sum(dtype=np.float64))


def test_several_workloads_are_processes(given, monkeypatch):
    calls = []

    def child(command, check):
        calls.append(command)
        return subprocess.CompletedProcess(command, len(calls) - 1)

    monkeypatch.setattr(bench.subprocess, "run", child)
    given("--workload=w3,digits", "--workload=w1", "--rounds=7")
    assert bench.main(["bench"]) == 2
    assert [call[3] for call in calls] == ["--workload=w3", "--workload=digits", "--workload=w1"]
    assert all("--rounds=7" in call and call[0] == sys.executable for call in calls)
    given()
    assert bench.chosen(bench.FLAGS.workload) == ["w1", "w2", "w3", "w4"]


@pytest.mark.parametrize(("items", "words"), [
    (["--workload=w9"], ["--workload=w9", "w1, w2, w3, w4, digits, all"]),
    (["--workload=w1", "--npz=nowhere.npz"], ["--npz=nowhere.npz", "x_train"]),
    (["--workload=w1", f"--npz={__file__}"], [f"--npz={__file__}", "x_train"]),
    (["--workload=digits", "--npz=nowhere.npz"], ["--npz=nowhere.npz", "w1, w2, w3, w4"]),
    (["--workload=w1", "--npz=a.npz", "--data_dir=b"], ["--npz=a.npz", "--data_dir"]),
    (["--workload=w1", "--data_dir=nowhere"], ["mnist", "nowhere"]),
    (["--workload=digits", "--rounds=0"], ["--rounds", "0", ">= 1"]),
    (["--workload=digits", "--warmup=-1"], ["--warmup", "-1", ">= 0"]),
    (["--workload=digits", "--chunk=some"], ["--chunk", "some", "auto"]),
    (["--workload=digits", "--partition_file=nowhere.npz"], ["partition_file", "nowhere.npz"]),
    (["--workload=digits", "w1"], ["w1"]),
])
def test_bad_flags_are_one_line(given, capsys, items, words):
    given(*[item for item in items if item.startswith("--")])
    assert bench.main(["bench", *[item for item in items if not item.startswith("--")]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words)


def test_unknown_flag_of_the_command():
    done = subprocess.run([sys.executable, "-m", "experiments.bench", "--speed=9"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "speed" in done.stderr
