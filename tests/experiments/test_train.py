"""The main job: every flag does what its help says, and a request that is not valid is one line and exit status 2."""
from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import models, registry
from fedjax_lab.data import known, scenario, sources

ROOT = pathlib.Path(__file__).parents[2]


def partition_of(done):
    return json.loads((done.path / "partition.json").read_text())


def plan_of(done):
    return json.loads((done.path / "config.json").read_text())["plan"]


def rounds_of(done):
    return [row["round"] for row in done.rows]


def column(done, name):
    return [row[name] for row in done.rows]


def write_partition(path, clients=5):
    np.savez(path, idx=np.append(np.arange(10 * clients).reshape(clients, 10), -np.ones((clients, 1), int), axis=1))
    return path


def write_ratings(folder):
    (folder / "ratings").mkdir()
    user, item = (a.ravel() for a in np.meshgrid(np.arange(6), np.arange(10), indexing="ij"))
    np.savez(folder / "ratings" / "ml_latest_small.npz", user=user, item=item, timestamp=item, rating=(user + item) / 3)
    return folder


def same(one, two):
    assert one == two


def differ(one, two):
    assert one != two


def close(one, two):
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# flag: (value, what a run with it shows beside a run without it)
EFFECTS = {
    "method": ("fedsgd", lambda a, b: differ(a.rows[1:], b.rows[1:])),
    "task": ("digits_mlp:widths=4", lambda a, b: same((plan_of(a)["parameters"], plan_of(b)["parameters"]), (650, 64 * 4 + 4 + 4 * 10 + 10))),
    "partition": ("iid", lambda a, b: same(partition_of(b)["partition"], "iid") or differ(partition_of(a)["sha256_partition"], partition_of(b)["sha256_partition"])),
    "clients": ("9", lambda a, b: same((partition_of(a)["clients"], partition_of(b)["clients"]), (8, 9))),
    "cohort": ("4", lambda a, b: same([3 * x for x in column(b, "bytes_up")], [4 * x for x in column(a, "bytes_up")])),
    "participation": ("poisson:1+dropout:1", lambda a, b: same((plan_of(a)["cohort"], plan_of(b)["cohort"]), (3, 8))
                      or same(column(b, "bytes_up"), [0] * 3) or same([8 * x for x in column(a, "bytes_down")], [3 * x for x in column(b, "bytes_down")])),
    "rounds": ("3", lambda a, b: same(rounds_of(b), [0, 2, 3])),
    "target_accuracy": ("0.3", lambda a, b: same(b.rows, a.rows[:2]) or differ(b.rows[-1]["test_accuracy"] >= 0.3, b.rows[0]["test_accuracy"] >= 0.3)),
    "eval_every": ("3", lambda a, b: same(rounds_of(b), [0, 3, 4]) or same(b.rows[-1]["test_accuracy"], a.rows[-1]["test_accuracy"])),
    "eval_clients": ("1", lambda a, b: same(column(b, "client_test_accuracy_std"), [0, 0, 0]) or same(column(a, "test_loss"), column(b, "test_loss"))),
    "client_test": ("0.5", lambda a, b: differ(partition_of(a)["sha256_partition"], partition_of(b)["sha256_partition"]) or differ(a.rows[1:], b.rows[1:])),
    "seed": ("1", lambda a, b: differ(a.rows[0], b.rows[0]) or same(partition_of(a), partition_of(b))),
    "data_seed": ("1", lambda a, b: differ(partition_of(a), partition_of(b)) or same(a.rows[0]["test_loss"], b.rows[0]["test_loss"])),
    "chunk": ("2", lambda a, b: same((plan_of(a)["chunk"], plan_of(b)["chunk"]), (3, 2)) or close(a, b)),
    "devices": ("2", lambda a, b: same((plan_of(a)["devices"], plan_of(b)["devices"]), (1, 2)) or same(a.rows, b.rows)),
    "wire_up": ("half", lambda a, b: same([x / 2 for x in column(a, "bytes_up")], column(b, "bytes_up")) or same(column(a, "bytes_down"), column(b, "bytes_down"))),
    "wire_down": ("half", lambda a, b: same([x / 2 for x in column(a, "bytes_down")], column(b, "bytes_down")) or same(column(a, "bytes_up"), column(b, "bytes_up"))),
    "aggregator": ("median", lambda a, b: differ(a.rows[1:], b.rows[1:])),
    "attack": ("sign-flip:1,scale=1", lambda a, b: same(a.rows[0]["test_loss"], b.rows[0]["test_loss"])
               or differ(b.rows[-1]["test_loss"] > b.rows[0]["test_loss"], a.rows[-1]["test_loss"] > a.rows[0]["test_loss"])),
    "privacy": ("dp-fedavg:noise=2,clip=0.1", lambda a, b: same(["epsilon" in row for row in a.rows], [False] * 3)
                or same(sorted(column(b, "epsilon")), column(b, "epsilon")) or same(column(b, "epsilon")[0], 0) or differ(*column(b, "epsilon")[1:])
                or differ(a.rows[1:], b.rows[1:]) or same("epsilon at delta=1e-05 by RDP, uniform cohorts of 3 of 8" in b.out, True)),
    "server": ("adam:lr=0.01", lambda a, b: differ(a.rows[1:], b.rows[1:])),
    "augment": ("noise:0.5", lambda a, b: differ(a.rows[1:], b.rows[1:]) or same(a.rows[0]["test_loss"], b.rows[0]["test_loss"])),
    "population": ("disk", lambda a, b: same((plan_of(a)["population"], plan_of(b)["population"]), ("device", "streamed")) or same(a.rows, b.rows)),
    "client_state": ("host", lambda a, b: same((plan_of(a)["client_state"], plan_of(b)["client_state"]), ("device", "host")) or same(a.rows, b.rows)),
    "lanes": ("16", lambda a, b: same((plan_of(a)["lanes"], plan_of(b)["lanes"]), (8, 16)) or close(a, b)),
}
APART = {"schedule", "graph", "allow_untested", "partition_file", "precision", "data_dir", "cache_dir", "model_devices", "stats", "init", "checkpoint_every", "keep", "max_segment_seconds"}  # some in test_schedules.py, test_gossip_cli.py, test_resume.py, test_model_axis.py, test_statistics.py, test_starts.py

LONG = ("privacy", "client_state", "lanes", "wire_down")  # tested elsewhere in the default matrix


def test_every_flag_is_tested():
    assert set(EFFECTS) | APART == {f.name for f in configs.fields()} and not set(EFFECTS) & APART


@pytest.mark.parametrize("flag", [pytest.param(flag, marks=[pytest.mark.full] if flag in LONG else []) for flag in EFFECTS])
def test_flag(job, plain, flag):
    value, check = EFFECTS[flag]
    other = job(f"--{flag}={value}")
    assert (plain.status, other.status) == (0, 0), other.err
    check(plain, other)


def test_partition_file(job, tmp_path):
    file = write_partition(tmp_path / "who.npz")
    done = job(f"--partition_file={file}", base=("--task=digits_logreg", "--cohort=3", "--rounds=1"))
    assert done.status == 0, done.err
    found = partition_of(done)
    assert (found["partition"], found["clients"]) == (f"file {file}", 5)
    assert "50 training examples" in done.out


@pytest.mark.full
def test_precision(job):
    for name, spelled in (("float32", "HIGHEST"), ("default", "DEFAULT")):
        assert job(f"--precision={name}", "--rounds=1").status == 0
        assert spelled in jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()


def test_data_dir(job, tmp_path, monkeypatch):
    monkeypatch.delitem(known.FACTS, "ml_latest_small")
    base = ("--task=ml_latest_small_mf", "--partition=natural", "--cohort=3", "--rounds=1")
    done = job(f"--data_dir={write_ratings(tmp_path)}", base=base)
    assert done.status == 0, done.err
    assert partition_of(done)["clients"] == 6 and "test_accuracy" not in done.rows[-1]
    lost = job(base=base)
    assert lost.status == 2 and "--data_dir" in lost.err


def test_cache_dir(job, tmp_path):
    job(f"--cache_dir={tmp_path / 'kept'}", "--rounds=1")
    assert (tmp_path / "kept" / "programs").is_dir() and jax.config.jax_compilation_cache_dir == str(tmp_path / "kept" / "programs")


def test_set(job, plain):
    still = job("--set", "lr=0")
    assert still.status == 0 and len(set(column(still, "test_loss"))) == 1 < len(set(column(plain, "test_loss")))
    assert json.loads((still.path / "config.json").read_text())["config"]["options"] == {"lr": 0.0}


def test_list(job):
    done = job("--list")
    assert done.status == 0 and not done.path.exists()
    for name in (*sources.SOURCES, *models.MODELS, "quadratic", *scenario.ITEMS, *registry.catalog("participation"), *registry.catalog("schedule"), "gossip", *registry.catalog("graph"), *registry.catalog("method"), "client_optimizer"):
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", done.out), name


def test_help():
    done = subprocess.run([sys.executable, "-m", "experiments.train", "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    shown = " ".join(done.stdout.split())
    for field in configs.fields():
        flag = f"--{'[no]' * isinstance(field.default, bool)}{field.name}"
        assert f"{flag}: {' '.join(field.metadata['help'].split())} (default: {field.default})" in shown, field.name
    assert all(f"{name}:" in shown for name in ("--set", "--workdir", "--resume", "--[no]list"))


def test_chunk_and_devices_together(job, plain):
    close(plain, job("--chunk=3", "--devices=2"))


@pytest.mark.full
def test_default_settings():
    start = time.perf_counter()
    run = fedjax_lab.train()
    assert run.history[-1]["test_accuracy"] > 0.94 and run.history[-1]["round"] == 400
    assert time.perf_counter() - start < 30


# flags, and what the line says
REFUSED = {
    "method": ("--method=fedavgg", "unknown method 'fedavgg'", "scaffold", "did you mean 'fedavg'"),
    "source": ("--task=digitz_mlp", "digitz", "synthetic", "did you mean 'digits'"),
    "model": ("--task=digits_mlpp", "unknown model 'mlpp'", "logreg", "did you mean 'mlp'"),
    "task form": ("--task=digits", "task 'digits'", "SOURCE_MODEL"),
    "model option": ("--task=digits_mlp:width=4", "option 'width'", "widths"),
    "model value": ("--task=digits_mlp:widths=a", "'widths'", "'a'", "int"),
    "partition": ("--partition=dirichlett:1", "unknown partition 'dirichlett'", "shards", "did you mean 'dirichlet'"),
    "partition value": ("--partition=dirichlet:-1", "'alpha'", "'-1'", "> 0"),
    "partition option": ("--partition=iid:foo=1", "'foo'", "sizes"),
    "no natural clients": ("--partition=natural", "natural", "dirichlet"),
    "option": ("--set=lrr=1", "option 'lrr'", "local_steps", "did you mean 'lr'"),
    "option value": ("--set=lr=x", "'lr'", "'x'", "float >= 0"),
    "negative rate": ("--set=lr=-1", "'lr'", "'-1'", ">= 0"),
    "form of an option": ("--set=lr", "--set=lr", "key=value", "batch_size"),
    "client optimizer": ("--set=client_optimizer=adamm", "client_optimizer 'adamm'", "momentum", "did you mean 'adam'"),
    "flag": ("--cohot=3", "--cohot", "eval_every", "did you mean 'cohort'"),
    "argument": ("cohort=3", "'cohort=3'", "--name=value"),
    "ill-typed": ("--rounds=x", "--rounds", "'x'", "int >= 1"),
    "no rounds": ("--rounds=0", "--rounds", "'0'", ">= 1"),
    "share": ("--target_accuracy=2", "--target_accuracy", "'2'", "<= 1"),
    "open share": ("--client_test=1", "--client_test", "'1'", "< 1"),
    "seed": ("--seed=-1", "--seed", "'-1'", ">= 0"),
    "choice": ("--precision=double", "--precision", "'double'", "bfloat16"),
    "chunk": ("--chunk=0", "--chunk", "'0'", "auto"),
    "devices": ("--devices=3", "devices=3", "power of two"),
    "too many devices": ("--devices=1024", "devices=1024", "choose 1, 2"),
    "lanes": ("--lanes=3", "lanes=3", "power of two"),
    "cohort": ("--cohort=9", "--cohort=9", "8 clients", "1..8"),
    "participation": ("--participation=unifrm", "--participation=unifrm", "poisson", "did you mean 'uniform'"),
    "participation value": ("--participation=uniform+dropout:2", "--participation=uniform+dropout:2", "'rate'", "<= 1"),
    "participation order": ("--participation=dropout", "--participation=dropout", "one of bernoulli, cyclic", "then each of dropout"),
    "participation option": ("--participation=poisson:slots=9", "--participation=poisson:slots=9", "'slots'", "1..8"),
    "clients": ("--clients=2000", "clients=2000", "1442 examples"),
    "no partition file": ("--partition_file=missing.npz", "partition_file 'missing.npz'", "not found"),
}


def refused(done, *words):
    assert done.status == 2 and done.out == ""
    assert done.err.endswith("\n") and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("case", REFUSED)
def test_refused(job, case):
    flag, *words = REFUSED[case]
    done = job(flag)
    refused(done, *words)
    assert not done.path.exists()


def test_refused_client_optimizer(job):
    refused(job("--method=scaffold", "--set=client_optimizer=adam"), "client_optimizer", "sgd")


def test_refused_data_folder(job, tmp_path):
    (tmp_path / "empty").mkdir()
    done = job(f"--data_dir={tmp_path / 'empty'}", "--task=mnist_2nn")
    refused(done, "'mnist' not found", str(tmp_path / "empty" / "mnist"), "--data_dir", "tfds build mnist", "digits")
    refused(job(f"--data_dir={tmp_path / 'none'}", "--task=mnist_2nn"), "'mnist' not found", str(tmp_path / "none"))


@pytest.mark.parametrize("arrays, words", [
    ({"who": [[0, 1]]}, ("lacks idx", "who")),
    ({"idx": [[0.5, 1]]}, ("integer array", "float64")),
    ({"idx": [[0, 1], [1, 2]]}, ("more than once",)),
    ({"idx": [[0, 1442]]}, ("1442",)),
    ({"idx": [[0, 1], [-1, -1]]}, ("client 1", "no example")),
])
def test_refused_partition_file(job, tmp_path, arrays, words):
    np.savez(tmp_path / "who.npz", **arrays)
    refused(job(f"--partition_file={tmp_path / 'who.npz'}"), "partition", *words)


def test_refused_partition_file_that_is_none(job, tmp_path):
    (tmp_path / "who.npz").write_text("0 1 2\n")
    refused(job(f"--partition_file={tmp_path / 'who.npz'}"), f"--partition_file={tmp_path / 'who.npz'}", "no .npz", "idx")
    refused(job(f"--partition_file={tmp_path}"), f"--partition_file={tmp_path}", "no .npz")
    file = write_partition(tmp_path / "good.npz")
    refused(job(f"--partition_file={file}", "--partition=iid"), "'iid'", "there is a file")
    refused(job(f"--partition_file={file}"), "--clients=8", "5 clients")


def test_refused_workdir(job, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(job(f"--workdir={tmp_path / 'full'}"), f"--workdir={tmp_path / 'full'}", "notes.txt", "new folder")
    assert [(p.name, p.read_text()) for p in (tmp_path / "full").iterdir()] == [("notes.txt", "mine")]
    refused(job(f"--workdir={tmp_path / 'full' / 'notes.txt' / 'run'}"), "--workdir=", "cannot be written")
    refused(job(f"--workdir={tmp_path / 'full' / 'notes.txt'}"), "--workdir=", "cannot be written")


def test_refused_from_the_shell():
    done = subprocess.run([sys.executable, "-m", "experiments.train", "--cohot=3"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean 'cohort'" in done.stderr


def test_divergence_keeps_what_was_written(job):
    done = job("--set=lr=1e30", "--eval_every=1", "--task=digits_mlp:widths=4")
    assert done.status == 1 and done.err.count("\n") == 1
    round_, clients = re.search(r"round (\d+): .* at clients? ([\d, ]+);", done.err).groups()
    assert all(0 <= int(i) < 8 for i in clients.split(","))
    assert rounds_of(done) == list(range(int(round_)))
    assert str(done.path) in done.err and not (done.path / "checkpoint").exists()
