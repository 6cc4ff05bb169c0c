"""A run that was stopped, killed or damaged goes on as if nothing had happened, and nothing that was there is lost."""
from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import guard, resume, run, workdir
from fedjax_lab.engine import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {"task": "digits_logreg", "clients": 8, "cohort": 3, "rounds": 7, "eval_every": 3, "devices": 1}
FLAGS = tuple(f"--{k}={v}" for k, v in SETTINGS.items())


@pytest.fixture(scope="module")
def prepared():
    """One compiled program for all runs of this file that need no command line."""
    jax.devices()  # the backend starts with the devices of tests/conftest.py
    return run.prepare(configs.make(SETTINGS))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole")
    go(path, prepared)
    return outcome(path)


class Crash(Exception):
    pass


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise Crash


def go(path, prepared, until=None, how=terminate, mode="auto", **settings):
    """Trains in the folder, or goes on; after the round `until` something happens, before it is kept or, a crash, after it."""
    config = dataclasses.replace(prepared.config, **settings)
    prepared = prepared._replace(config=config)
    start = resume.find(str(path), config, mode)
    with workdir.WorkDir(str(path), prepared, start) as folder:

        def keep(now):
            happens = until is not None and now.clock >= until
            if happens and how is not crash:
                how()
            folder.keep(now)
            if happens and how is crash:
                crash()

        return run.follow(prepared, None, folder.start, keep)


def stopped(path, prepared, until, how=terminate, **settings):
    with pytest.raises((workdir.Stopped, Crash)):
        go(path, prepared, until, how, **settings)


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def outcome(path):
    """What a run left: its rows, and the bits of its last checkpoint."""
    saved = checkpoint.newest(epath.Path(path) / "checkpoint", "state", "model")
    rows = workdir.history(str(path))
    assert list(saved.notes["history"]) == rows
    arrays = {f"{g}{name}": (str(x.dtype), x.shape, x.tobytes()) for g, group in saved.groups.items() for name, x in group.items()}
    return timeless(rows), arrays, {k: v for k, v in saved.notes.items() if k not in ("seconds", "history")}


def contents(path):
    """Every file of a folder with its bytes and its time."""
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in pathlib.Path(path).rglob("*") if p.is_file()}


def clocks(path):
    return sorted(int(p.name) for p in (path / "checkpoint").iterdir() if p.name.isdigit())


def last(path):
    return path / "checkpoint" / f"{clocks(path)[-1]:08d}"


ONE_BY_ONE = {"max_segment_seconds": 1e-9}


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


def test_on_other_devices(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 4, **ONE_BY_ONE)
    go(tmp_path, run.prepare(dataclasses.replace(prepared.config, devices=2, chunk=2, population="host")))
    assert outcome(tmp_path) == whole


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


def test_the_rows_follow_the_checkpoint(prepared, whole, tmp_path):
    """What a crash left beyond it is cut off, a line cut short too, and lost lines come back."""
    stopped(tmp_path, prepared, 6)
    file = tmp_path / "metrics.jsonl"
    text = file.read_text()
    for broken in (text + '{"round": 7, "seco', text + '{"round": 7}\n', text[: len(text) // 2], ""):
        file.write_text(broken)
        assert len(workdir.history(str(tmp_path))) <= 4
        with workdir.WorkDir(str(tmp_path), prepared, resume.find(str(tmp_path), prepared.config)):
            assert file.read_text() == text
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole
    file.write_text("{}\n{\n" + text)
    with pytest.raises(ValueError, match="line 2 of metrics.jsonl is damaged"):
        workdir.history(str(tmp_path))
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_checkpoints_come_by_rounds(prepared, tmp_path):
    go(tmp_path, prepared, checkpoint_every=2, keep=3)
    assert clocks(tmp_path) == [4, 6, 7]
    assert [row["round"] for row in workdir.history(str(tmp_path))] == [0, 3, 6, 7]


def test_checkpoints_come_by_minutes(prepared, tmp_path):
    go(tmp_path / "often", prepared, checkpoint_every="0.00001m", keep=9, **ONE_BY_ONE)
    assert clocks(tmp_path / "often") == [1, 2, 3, 4, 5, 6, 7]
    go(tmp_path / "seldom", prepared, checkpoint_every="9m", **ONE_BY_ONE)
    assert clocks(tmp_path / "seldom") == [7]


def test_the_one_before_is_used(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 6, checkpoint_every=2, keep=3)
    (tmp_path / "checkpoint" / "00000007.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    damaged = last(tmp_path)
    data = [p for p in (damaged / "state").rglob("*") if p.is_file()]
    for file in data:
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning) as warned:
        go(tmp_path, prepared, keep=3)
    text = "\n".join(str(w.message) for w in warned)
    assert f"{damaged} is damaged and passed over" in text and "00000007.orbax-checkpoint-tmp is half-written" in text
    assert outcome(tmp_path) == whole
    aside = damaged.with_name("00000006.damaged")
    assert {p.name for p in aside.iterdir()} >= {"state", "model"} and clocks(tmp_path) == [2, 4, 7]


def test_without_a_whole_checkpoint_it_starts_again(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 6)
    (last(tmp_path) / "notes" / "metadata").unlink()
    with pytest.warns(UserWarning, match="00000006 is damaged"), pytest.raises(ValueError, match="--resume=must: .* no whole checkpoint"):
        resume.find(str(tmp_path), prepared.config, "must")
    with pytest.warns(UserWarning, match="00000006 is damaged"):
        go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_another_process_is_kept_out(prepared, tmp_path):
    with workdir.WorkDir(str(tmp_path), prepared), pytest.raises(ValueError, match="another process is writing there"):
        go(tmp_path, prepared)
    go(tmp_path, prepared)


REFUSED = {  # settings of the second start, and what the line says
    "another seed": ({"seed": 1}, "seed: 0 -> 1"),
    "two": ({"seed": 1, "lanes": 16}, "seed: 0 -> 1; lanes: 8 -> 16"),
    "fewer rounds": ({"rounds": 6}, "rounds: 7 -> 6, can only be raised"),
    "other rows": ({"eval_every": 2}, "eval_every: 3 -> 2"),
    "option": ({"options": {"lr": 0.5}}, "set lr: default -> 0.5"),
    "no restart": ({"mode": "never"}, "already holds checkpoint; nothing is overwritten"),
    "mode": ({"mode": "maybe"}, "--resume: 'maybe' is not valid; expected one of auto, never, must"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(prepared, whole, tmp_path, case):
    settings, words = REFUSED[case]
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        go(tmp_path, prepared, **settings)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_refused_for_want_of_a_run(prepared, tmp_path):
    with pytest.raises(ValueError, match="--resume=must: .* holds no run"):
        go(tmp_path / "new", prepared, mode="must")
    assert not (tmp_path / "new").exists()
    go(tmp_path / "new", prepared, mode="never")


def edited(path, **changes):
    record = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in record.items()}))


@pytest.mark.parametrize("change, words", [
    (lambda p: edited(p, versions={"fedjax_lab": "99.1"}), "config.json is by fedjax_lab 99.1, this is 0"),
    (lambda p: edited(p, config={"warp": 9}), "has settings unknown here (warp)"),
    (lambda p: (p / "config.json").write_text("{"), "config.json is not that of a run, or damaged"),
    (lambda p: (p / "config.json").write_text('{"name": "other"}'), "config.json is not that of a run, or damaged"),
])
def test_refused_config(prepared, tmp_path, change, words):
    stopped(tmp_path, prepared, 3)
    change(tmp_path)
    before = contents(tmp_path)
    for act in (lambda: go(tmp_path, prepared), lambda: fedjax_lab.load(str(tmp_path))):
        with pytest.raises(ValueError) as error:
            act()
        assert words in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_another_jax_is_named(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 3)
    edited(tmp_path, versions={"jax": "0.1"})
    with pytest.warns(UserWarning, match="begun with jax 0.1"):
        go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_refused_data(prepared, tmp_path):
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)
    facts = {**prepared.population.manifest, "sha256_partition": "0123"}
    other = prepared._replace(population=prepared.population._replace(manifest=facts))
    with pytest.raises(ValueError, match="run on other data .sha256_partition: .* -> 0123"):
        go(tmp_path, other)
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore:.*is half-written")
@pytest.mark.parametrize("what, until", [("row", 6), ("checkpoint", 4)])
def test_a_full_disk_loses_nothing(prepared, whole, tmp_path, what, until):
    stopped(tmp_path, prepared, 3)
    before, limits = contents(last(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "metrics.jsonl").stat().st_size + 1 if what == "row" else 500
    try:
        with pytest.raises(OSError, match=r"cannot be written any more \(File too large.*\); what was written before is kept") as error:
            go(tmp_path, prepared, until, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1])), checkpoint_every=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and contents(tmp_path / "checkpoint" / "00000003") == before
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_a_folder_that_became_read_only_loses_nothing(prepared, whole, tmp_path, monkeypatch):
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(guard, "write", refuse)
        with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)"):
            go(tmp_path, prepared)
    assert contents(tmp_path) == before
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_a_start_that_crashed_at_once(prepared, whole, tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"config": {')
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


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


SERVER = """
import json, os, sys
import matplotlib.pyplot, orbax.checkpoint, sklearn.datasets
from experiments import train
from fedjax_lab import registry, resume, workdir
registry.catalog("method")
for line in iter(sys.stdin.readline, ""):  # a process for each line, with everything imported and nothing begun
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.argv = ["train", *json.loads(line)]
        train.entry()
    print(pid, flush=True)
    sys.stdin.readline()  # until then the process may be over, but its number is nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
LONG = ("--task=digits_logreg", "--clients=8", "--cohort=3", "--rounds=60", "--eval_every=7", "--devices=1", "--checkpoint_every=4",
        "--max_segment_seconds=0.02")


class Jobs:
    """Main jobs in processes of their own, one at a time."""

    def __init__(self, folder):
        self.log = (folder / "log").open("w+")
        env = {**os.environ, "XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, path):
        return self.ask(json.dumps([*LONG, f"--workdir={path}"]))

    def end(self):
        return self.ask("")

    def said(self):
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.process.stdin.close()
    assert jobs.process.wait(30) == 0


@pytest.fixture(scope="module")
def undisturbed(jobs, tmp_path_factory):
    """The outcome of the long job, and the seconds it took with its program in the cache."""
    for attempt in ("compile", "measure"):
        path, begin = tmp_path_factory.mktemp(attempt) / "run", time.monotonic()
        jobs.start(path)
        assert jobs.end() == 0, jobs.said()
    return outcome(path), time.monotonic() - begin


def wait_for(condition, seconds=300):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.0005)


def half_written(path):
    return {p.name for p in path.glob("checkpoint/*.orbax-checkpoint-tmp")}


def wait_for_writing(path, before):
    """Until a checkpoint is being written, or the run is over."""
    wait_for(lambda: half_written(path) - before or (path / "curves.png").exists())


def killed_again_and_again(jobs, undisturbed, folder, kills):
    """Kills at random moments, every third in the middle of writing a checkpoint; each run ends as the undisturbed one."""
    expected, seconds = undisturbed
    rng, done, number = random.Random(0), 0, 0
    path = folder / "run0"
    while done < kills or path.exists():
        before, pid = half_written(path), jobs.start(path)
        if done < kills and done % 3 == 2:
            wait_for_writing(path, before)
            os.kill(pid, signal.SIGKILL)
        elif done < kills:
            time.sleep(rng.uniform(0, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
        status = jobs.end()
        assert status in (0, -signal.SIGKILL), jobs.said()
        done += status != 0
        if status == 0:
            assert outcome(path) == expected and (path / "curves.png").exists()
            number += 1
            path = folder / f"run{number}"
    return done


def test_killed_at_random_moments(jobs, undisturbed, tmp_path):
    assert killed_again_and_again(jobs, undisturbed, tmp_path, 3) == 3


@pytest.mark.full
def test_killed_at_twenty_random_moments(jobs, undisturbed, tmp_path):
    assert killed_again_and_again(jobs, undisturbed, tmp_path, 20) == 20


def test_sigterm_leaves_a_checkpoint_in_time(jobs, undisturbed, tmp_path):
    path = tmp_path / "run"
    pid = jobs.start(path)
    wait_for(lambda: (path / "metrics.jsonl").exists() and len(workdir.history(str(path))) > 2)
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert jobs.end() == 143 and time.monotonic() - begin < 30
    assert f"stopped by SIGTERM after round {clocks(path)[-1]}; the same command goes on" in jobs.said()
    jobs.start(path)
    assert jobs.end() == 0 and outcome(path) == undisturbed[0]
