"""A sweep trains every combination, writes what it found, and goes on where it was interrupted."""
from __future__ import annotations

import csv
import errno
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

import pytest
from scipy import stats

from experiments import series, sweep
from fedjax_lab import config as configs
from fedjax_lab import resume, run, workdir
from fedjax_lab.metrics import comparison

ROOT = pathlib.Path(__file__).parents[2]
BASE = ("--task=digits_logreg", "--clients=6", "--cohort=3", "--rounds=4", "--eval_every=2", "--devices=2", "--set=batch_size=full", "--seeds=3")
SWEEP = (*BASE, "--sweep=lr=0.05,0.1")
RUNS = [f"lr={lr}-seed{seed}" for lr in ("0.05", "0.1") for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sweep that the tests share, once the first has made it."""
    return tmp_path_factory.mktemp("sweep") / "W"


@pytest.fixture
def done(program, folder):
    """(status, out, err) of the sweep with further flags; what is trained already is not trained again."""
    return lambda *more: program(sweep, *SWEEP, f"--workdir={folder}", *more)


def table(path):
    with open(path / "table.csv") as file:
        return {line["name"]: {k: v if k == "name" else float(v) if v else None for k, v in line.items()} for line in csv.DictReader(file)}


def histories(path):
    return {name: workdir.history(path / "runs" / name) for name in RUNS}


def shown(path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.full
def test_it_is_interrupted_and_goes_on(done, folder, monkeypatch):
    real, written = series.write, []

    def write(path, prepared, trained):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, prepared, trained)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(series, "write", write)
        done("--at_once=3")
    assert written == RUNS[:4] and shown(folder / "runs") == sorted(written) and shown(folder) == ["runs"]
    before = {name: (folder / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in written}
    status, out, err = done("--at_once=3")
    assert (status, err) == (0, "") and "4 of 6 runs are there" in out and "2 runs of fedavg, 2 in a call" in out
    assert shown(folder) == ["curves.png", "runs", "table.csv", "table.md"] and shown(folder / "runs") == sorted(RUNS)
    assert {name: (folder / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in written} == before
    status, again, _ = done()
    assert status == 0 and "6 of 6 runs are there" in again and "in a call" not in again
    assert again.split("are there")[1] == out.split("2 of 2 runs")[1].split("\n", 1)[1].join(["\n", ""])


@pytest.mark.full
def test_it_is_killed_and_goes_on(program, programs, tmp_path):
    """A process that has no time to tidy up: what it wrote stays, what is missing is trained, and nothing shows."""
    argv = (*BASE[:-1], "--seeds=40", "--sweep=lr=0.05,0.1", "--at_once=1", f"--cache_dir={programs}")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-m", "experiments.sweep", *argv, f"--workdir={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(list(killed.glob("runs/*-seed*/metrics.jsonl"))) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (killed / "table.md").exists()
    before = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*-seed*/metrics.jsonl")}
    status, out, err = program(sweep, *argv, f"--workdir={killed}")
    assert (status, err) == (0, "") and f"{len(before)} of 80 runs are there" in out and 3 <= len(before) < 80
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert program(sweep, *argv, f"--workdir={whole}")[0] == 0 and shown(killed) == shown(whole) == ["curves.png", "runs", "table.csv", "table.md"]
    assert shown(killed / "runs") == shown(whole / "runs") and len(shown(whole / "runs")) == 80
    for name in shown(whole / "runs"):
        rows = [[{**row, "seconds": 0} for row in workdir.history(path / "runs" / name)] for path in (killed, whole)]
        assert rows[0] == rows[1], name


def test_a_run_is_a_folder_that_others_read(done, folder):
    assert done()[0] == 0
    for name, history in histories(folder).items():
        record, path = resume.read_config(folder / "runs" / name), folder / "runs" / name
        options, seed = {"lr": float(re.match(r"lr=([\d.]+)", name)[1]), "batch_size": "full"}, int(name[-1])
        assert (record["config"]["options"], record["config"]["seed"], record["config"]["method"]) == (options, seed, "fedavg")
        assert [row["round"] for row in history] == [0, 2, 4] and history[0]["seconds"] == 0 < history[-1]["seconds"]
        assert f"--seed={seed}" in (path / "run.flags").read_text() or seed == 0
        assert json.loads((path / "partition.json").read_text())["clients"] == 6
    config = configs.make({**record["config"], "devices": 1})
    for row, other in zip(history, run.follow(run.prepare(config)).history, strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-5)


def test_the_table_follows_from_the_runs(done, folder):
    assert done("--target=0.5")[0] == 0
    found, runs = table(folder), histories(folder)
    assert list(found) == ["lr=0.05", "lr=0.1"] and (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    last = {label: [runs[f"{label}-seed{s}"][-1]["test_accuracy"] for s in range(3)] for label in found}
    for label, line in found.items():
        own = [runs[f"{label}-seed{s}"] for s in range(3)]
        reached = [next((row["round"] for row in rows if row["test_accuracy"] >= 0.5), float("inf")) for rows in own]
        assert (line["last_mean"], line["last_std"]) == pytest.approx((statistics.mean(last[label]), statistics.stdev(last[label])))
        assert line["best_mean"] == pytest.approx(statistics.mean(max(row["test_accuracy"] for row in rows) for rows in own))
        assert (line["rounds_to_target"], line["reached"]) == (statistics.median(reached), sum(r < 5 for r in reached))
        assert line["seconds"] == pytest.approx(statistics.mean(rows[-1]["seconds"] for rows in own)) and line["broken"] == 0
    test = stats.ttest_rel(last["lr=0.1"], last["lr=0.05"])
    interval = test.confidence_interval(0.95)
    expected = (statistics.mean(last["lr=0.1"]) - statistics.mean(last["lr=0.05"]), *interval)
    assert tuple(found["lr=0.1"][k] for k in ("difference", "difference_low", "difference_high")) == pytest.approx(expected)
    assert found["lr=0.05"]["difference"] is None


def test_flags_of_the_table(done, folder):
    first, text = table(folder), (folder / "table.md").read_text()
    middle = max(history[1]["test_loss"] for history in histories(folder).values())
    assert done("--metric=test_loss", f"--target={middle}")[0] == 0
    second, other = table(folder), (folder / "table.md").read_text()
    assert first["lr=0.1"]["last_mean"] != second["lr=0.1"]["last_mean"] and "until it is at least 0.5" in text
    assert second["lr=0.1"]["rounds_to_target"] == 2 and f"until it is at most {middle:.4g}" in other and "test set: loss" in other
    assert "fedavg, sweep of lr: digits_logreg, 4 rounds, clients 6, cohort 3, eval_every 2" in other


@pytest.mark.full
def test_ratios(done, monkeypatch, program, tmp_path):
    monkeypatch.setattr(sweep, "warm", lambda config, seeds: 5.0 if config.devices == 2 else 8.0)
    monkeypatch.setattr(sweep, "process", lambda config: 100.0)
    assert done()[0] == 0
    out = done("--ratios")[1]
    single, share = map(float, re.search(r"([\d.]+) s a run alone, ([\d.e-]+) s in the sweep", out).groups())
    assert single == 5 and float(re.search(r"sweep: ([\d.]+) times", out)[1]) == pytest.approx(5 / share, rel=0.01)
    assert "2 devices with a run each, which wait for nobody: 4 s a run, 1.25 times faster" in out
    assert "not measured, since part of the sweep had been there before" in out
    out = program(sweep, *BASE[:-1], "--seeds=1", "--rounds=1", f"--workdir={tmp_path / 'W'}", "--ratios")[1]
    whole, seconds, ratio = map(float, re.search(r"([\d.]+) s for all 1, the sweep ([\d.]+) s: ([\d.]+) times", out).groups())
    assert whole == 100 and ratio == pytest.approx(100 / seconds, rel=0.01)


def test_what_ratios_measure(folder, done, job):
    assert done()[0] == 0
    config = configs.make(resume.read_config(folder / "runs" / RUNS[0])["config"])
    assert 0 < sweep.warm(config, [0, 1]) < 5


@pytest.mark.full
def test_a_process_of_its_own(folder, done):
    assert done()[0] == 0
    assert 1 < sweep.process(configs.make(resume.read_config(folder / "runs" / RUNS[0])["config"])) < 120


@pytest.mark.full
def test_a_sweep_is_faster_than_its_runs(tmp_path):
    """In a process of its own, since the time of the sweep counts from its process's start."""
    flags = ("--task=digits_logreg", "--rounds=200", "--seeds=8", "--sweep=lr=0.01,0.03,0.1", "--ratios", f"--workdir={tmp_path / 'W'}")
    out = subprocess.run([sys.executable, "-m", "experiments.sweep", *flags], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *_, warm, whole = map(float, re.findall(r"([\d.]+) times faster$", out, re.MULTILINE))
    assert warm > 1.3 and whole > 3, out


REFUSED = {
    "option": (("--sweep=lrr=1",), "no option 'lrr'", "did you mean 'lr'"),
    "value": (("--sweep=lr=0.1,x",), "'lr'", "'x'"),
    "form": (("--sweep=lr",), "--sweep=lr", "key=value,value"),
    "no value": (("--sweep=lr=",), "--sweep=lr=", "key=value,value"),
    "same value": (("--sweep=lr=0.1,0.10",), "'lr=0.1'", "twice"),
    "same option": (("--sweep=lr=0.1", "--sweep=lr=0.2"), "'lr' is given twice"),
    "set and form": (("--set=lr",), "--set=lr", "key=value"),
    "seeds": (("--seeds=0",), "--seeds", "'0'", ">= 1"),
    "at once": (("--at_once=0",), "--at_once", ">= 1"),
    "target": (("--target=x",), "--target", "'x'"),
    "flag": (("--sed=1",), "--sed", "did you mean 'seed"),
    "method": (("--method=fedavgg",), "unknown method 'fedavgg'", "did you mean 'fedavg'"),
    "client state": (("--client_state=host",), "need --population=device and --client_state=device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(program, tmp_path, case):
    argv, *words = REFUSED[case]
    status, _, err = program(sweep, *BASE, f"--workdir={tmp_path / 'W'}", *argv)
    assert status == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    assert not list(tmp_path.glob("W/*.*"))


def test_refused_for_what_the_folder_holds(done, program, folder, tmp_path):
    status, _, err = done("--cohort=2")
    assert status == 2 and "lr=0.05-seed0 there has another configuration (cohort: 3 -> 2)" in err and err.count("\n") == 1
    status, _, err = done("--metric=test_accurcy")
    assert status == 2 and "test_accurcy" in err and "did you mean 'test_accuracy'" in err
    (tmp_path / "notes.txt").write_text("mine")
    status, _, err = program(sweep, *BASE, f"--workdir={tmp_path}")
    assert status == 2 and "already holds notes.txt" in err and shown(tmp_path) == ["notes.txt"]


def test_a_full_disk_loses_nothing(done, folder, monkeypatch):
    assert done()[0] == 0
    before = histories(folder)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "draw", refuse)
        status, _, err = done()
    assert status == 1 and err == "error: [Errno 28] No space left on device; what was written before is kept, and the same command goes on\n"
    assert histories(folder) == before and done()[0] == 0


def test_a_run_that_is_damaged_or_newer_is_named_and_one_that_is_cut_short_is_trained_again(done, folder):
    assert done()[0] == 0
    path = folder / "runs" / RUNS[0]
    record, rows = ((path / name).read_text() for name in ("config.json", "metrics.jsonl"))
    config = configs.make(json.loads(record)["config"])
    changes = {
        "config.json is by fedjax_lab 99.1, this is": ("config.json", json.dumps({**json.loads(record), "versions": {"fedjax_lab": "99.1"}})),
        "config.json is not that of a run, or damaged": ("config.json", "{"), "line 1 of metrics.jsonl is damaged": ("metrics.jsonl", "{\n" + rows),
    }
    for words, (name, text) in changes.items():
        kept = (path / name).read_text()
        (path / name).write_text(text)
        status, _, err = done()
        assert status == 2 and words in err and err.count("\n") == 1 and (path / name).read_text() == text
        (path / name).write_text(kept)
    assert len(series.found_at(path, config)) == 3
    (path / "metrics.jsonl").write_text(rows[:-20])
    assert series.found_at(path, config) is None
    (path / "metrics.jsonl").write_text(rows)


def test_help():
    text = subprocess.run([sys.executable, "-m", "experiments.sweep", "--help"], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=120).stdout.replace("[no]", "")
    names = ("seeds", "sweep", "set", "ratios", "metric", "target", "at_once", "workdir", *(f.name for f in configs.fields()))
    assert all(f"--{name}:" in text for name in names)
