"""A main job that is killed at any moment, or asked to end, goes on to the same bits."""
from __future__ import annotations

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from interruption import clocks, outcome

from fedjax_lab import workdir

ROOT = pathlib.Path(__file__).parents[2]
SERVER = """
import json, os, sys
import matplotlib.pyplot, orbax.checkpoint
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
KINDS = {  # what further evolves: nothing; events and earlier models; the nodes' models and who is there; rows, memories, a server optimizer and
    "rounds": (),  # a Markov chain; the clipping norm, and epsilon
    "buffered": ("--method=fedbuff", "--schedule=buffered:2,law=lognormal"),
    "gossip": ("--method=dfedavgm", "--graph=random:3", "--cohort=8", "--participation=uniform+dropout:0.3"),
    "rows": ("--method=scaffold", "--wire_up=topk:0.1", "--server=adam:lr=0.01", "--participation=markov:arrive=0.3,leave=0.3"),
    "private": ("--privacy=dp-fedavg:adaptive=true,bits_noise=0.5", "--participation=poisson"),
}


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

    def start(self, path, kind="rounds"):
        return self.ask(json.dumps([*LONG, *KINDS[kind], f"--workdir={path}"]))

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
    """(kind) -> the outcome of the long job, and the seconds it took with its program in the cache."""

    @functools.cache
    def of(kind="rounds"):
        for attempt in ("compile", "measure"):
            path, begin = tmp_path_factory.mktemp(f"{kind}-{attempt}") / "run", time.monotonic()
            jobs.start(path, kind)
            assert jobs.end() == 0, jobs.said()
        return outcome(path), time.monotonic() - begin

    return of


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


def killed_again_and_again(jobs, undisturbed, folder, kills, kind="rounds"):
    """Kills at random moments, every third in the middle of writing a checkpoint; each run ends as the undisturbed one."""
    expected, seconds = undisturbed(kind)
    rng, done, number = random.Random(0), 0, 0
    path = folder / "run0"
    while done < kills or path.exists():
        before, pid = half_written(path), jobs.start(path, kind)
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


def test_killed_at_a_random_moment(jobs, undisturbed, tmp_path):
    assert killed_again_and_again(jobs, undisturbed, tmp_path, 1) == 1


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_random_moments(jobs, undisturbed, tmp_path, kind):
    assert killed_again_and_again(jobs, undisturbed, tmp_path, 20, kind) == 20
    rows = undisturbed(kind)[0][0]
    own = {"rounds": set(), "buffered": {"time", "uploads"}, "gossip": {"consensus_distance"}, "rows": set(), "private": {"epsilon", "privacy"}}
    assert own[kind] <= set(rows[-1]) and [row["round"] for row in rows] == [*range(0, 60, 7), 60]


def test_sigterm_leaves_a_checkpoint_in_time(jobs, undisturbed, tmp_path):
    path = tmp_path / "run"
    pid = jobs.start(path)
    wait_for(lambda: (path / "metrics.jsonl").exists() and len(workdir.history(str(path))) > 2)
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert jobs.end() == 143 and time.monotonic() - begin < 30
    assert f"stopped by SIGTERM after round {clocks(path)[-1]}; the same command goes on" in jobs.said()
    jobs.start(path)
    assert jobs.end() == 0 and outcome(path) == undisturbed()[0]
