"""A run that was stopped goes on as if nothing had happened."""
from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from interruption import ONE_BY_ONE, SETTINGS, Crash, clocks, contents, crash, go, outcome, stopped, terminate, timeless

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import resume, run, workdir

FLAGS = tuple(f"--{k}={v}" for k, v in SETTINGS.items())


@pytest.mark.parametrize("until, how, settings", [
    (4, terminate, ONE_BY_ONE),  # between two evaluations
    (6, terminate, {}),
    (5, crash, {"checkpoint_every": 1, **ONE_BY_ONE}),
    (5, crash, {"checkpoint_every": 2}),  # rows and rounds beyond the checkpoint are made again
    (3, crash, {}),  # no checkpoint yet
])
def test_it_goes_on_exactly(prepared, whole, tmp_path, until, how, settings):
    stopped(tmp_path, prepared, until, how, **settings)
    assert not (tmp_path / "curves.png").exists()
    done = go(tmp_path, prepared)
    assert outcome(tmp_path) == whole and timeless(done.history) == whole[0]
    assert (tmp_path / "curves.png").exists()


def test_it_goes_on_as_often_as_one_likes(prepared, whole, tmp_path):
    for until in (1, 2, 3, 5, 6):
        stopped(tmp_path, prepared, until, **ONE_BY_ONE)
        assert resume.find(str(tmp_path), prepared.config).clock == until
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole
    seconds = [row["seconds"] for row in workdir.history(str(tmp_path))]
    assert seconds == sorted(seconds)


@pytest.mark.full
def test_on_other_devices(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 4, **ONE_BY_ONE)
    go(tmp_path, run.prepare(dataclasses.replace(prepared.config, devices=2, chunk=2, population="host")))
    assert outcome(tmp_path) == whole


@pytest.mark.full
def test_client_rows_on_disk(tmp_path):
    table = run.prepare(configs.make({**SETTINGS, "method": "scaffold", "client_state": "disk"}))
    go(tmp_path / "whole", table)
    stopped(tmp_path / "cut", table, 4, **ONE_BY_ONE)
    go(tmp_path / "cut", table)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_more_rounds_go_on_from_the_end(prepared, whole, tmp_path):
    go(tmp_path, prepared, rounds=6)
    go(tmp_path, prepared, rounds=7)
    assert outcome(tmp_path) == whole
    assert json.loads((tmp_path / "config.json").read_text())["config"]["rounds"] == 7


def test_after_the_target_there_is_nothing_to_do(prepared, whole, tmp_path):
    target = {"target_accuracy": whole[0][1]["test_accuracy"] - 1e-6}
    go(tmp_path, prepared, **target)
    before = contents(tmp_path)
    done = go(tmp_path, prepared, **target, rounds=9)
    assert timeless(done.history) == whole[0][:2] and contents(tmp_path) == before


def test_checkpoints_come_by_rounds(prepared, tmp_path):
    go(tmp_path, prepared, checkpoint_every=2, keep=3)
    assert clocks(tmp_path) == [4, 6, 7]
    assert [row["round"] for row in workdir.history(str(tmp_path))] == [0, 3, 6, 7]


def test_checkpoints_come_by_minutes(prepared, tmp_path):
    go(tmp_path / "often", prepared, checkpoint_every="0.00001m", keep=9, **ONE_BY_ONE)
    assert clocks(tmp_path / "often") == [1, 2, 3, 4, 5, 6, 7]
    go(tmp_path / "seldom", prepared, checkpoint_every="9m", **ONE_BY_ONE)
    assert clocks(tmp_path / "seldom") == [7]


def test_load_reads_a_run_on_its_way(prepared, tmp_path):
    stopped(tmp_path, prepared, 4, **ONE_BY_ONE)
    there = resume.find(str(tmp_path), prepared.config).state
    leaves = [np.asarray(x) for x in jax.tree.leaves(fedjax_lab.load(str(tmp_path)).params)]
    servers = [x for name, x in there.items() if name.startswith(".server")]
    assert len(leaves) == len(servers) and all(np.array_equal(a, b) for a, b in zip(leaves, servers, strict=True))


def test_python_call(whole, tmp_path):
    path, seen = str(tmp_path / "run"), []
    report = lambda _, row: seen.append(row["round"])
    with pytest.raises(Crash):
        fedjax_lab.train(**SETTINGS, workdir=path, checkpoint_every=3, report=lambda _, row: (_ for _ in ()).throw(Crash) if row["round"] == 6 else None)
    done = fedjax_lab.train(**SETTINGS, workdir=path, report=report)
    assert outcome(path) == whole and timeless(done.history) == whole[0]
    before = contents(path)
    again = fedjax_lab.train(**SETTINGS, workdir=path, report=report, resume="must")
    assert contents(path) == before and again.history == done.history
    assert all(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(r.model.params) for r in (done, again)), strict=True))
    assert seen in ([6, 7, 7], [3, 6, 7, 7])


def test_command_line(job, whole):
    flags = (*FLAGS, "--checkpoint_every=2")
    done = job(*flags, base=())
    assert done.status == 0 and outcome(done.path) == whole
    before = contents(done.path)
    again = job(*flags, f"--workdir={done.path}", base=())
    assert again.status == 0 and again.out.startswith(f"{done.path}: finished, round     7") and again.out.count("\n") == 1
    assert contents(done.path) == before
    for more, words in (("--seed=1", "seed: 0 -> 1"), ("--resume=never", "already holds checkpoint"), ("--resume=no", "auto, never, must"),
                        ("--checkpoint_every=5s", "'5s' is not valid; expected rounds (100) or minutes (5m)")):
        refused = job(*flags, f"--workdir={done.path}", more, base=())
        assert (refused.status, refused.out) == (2, "") and refused.err.count("\n") == 1 and words in refused.err
    assert contents(done.path) == before
    more = job(*flags, f"--workdir={done.path}", "--rounds=9", base=())
    assert more.status == 0 and "going on after round 7" in more.out
    assert [row["round"] for row in workdir.history(str(done.path))] == [0, 3, 6, 7, 9]
