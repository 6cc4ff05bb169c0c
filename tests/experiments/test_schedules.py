"""Runs on the virtual clock from the command line: their rows, what is refused, and many of them at once."""
from __future__ import annotations

import pathlib
import re

import jax
import pytest

from fedjax_lab import config as configs
from fedjax_lab import many, run

CLOCKED = ("time", "uploads", "rejected", "waiting", "training")
SYNC = ("--schedule=buffered:3,law=fixed:0.5", "--allow_untested")


def column(done, name):
    return [row[name] for row in done.rows]


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows]


def test_rows_know_the_virtual_time_and_the_uploads(job):
    done = job("--method=fedbuff", "--schedule=buffered:2,law=lognormal,max_staleness=1", "--cohort=6")
    assert done.status == 0, done.err
    times = column(done, "time")
    assert times[0] == 0 < times[1] < times[2] and column(done, "uploads") == [0, 4, 8]
    sent = [n + lost for n, lost in zip(column(done, "uploads"), column(done, "rejected"), strict=True)]
    assert column(done, "bytes_up") == column(done, "bytes_down") == [4 * 650 * n for n in sent]  # what the server knows costs nothing
    assert column(done, "training")[1:] == [5, 5] and column(done, "waiting") == [0, 0, 0] and column(done, "rejected")[-1] > 0
    left = "8 uploads, {rejected} rejected, {waiting} waiting, {training} training".format(**done.rows[-1])
    assert left in done.out and f"time {times[-1]:.5g}" in done.out
    assert not {"train_time", "train_uploads"} & set(done.rows[-1])


def test_allow_untested_runs_another_schedule_and_says_so(job):
    schedule, allowed = SYNC
    refused = job(schedule)
    assert refused.status == 2 and refused.err == (
        "error: --schedule=buffered:3,law=fixed:0.5: 'fedavg' was published for --schedule=sync; --allow_untested runs it all the same\n")
    done = job(schedule, allowed)
    assert "untested: --schedule=buffered:3,law=fixed:0.5: 'fedavg' was published for --schedule=sync\n" in done.out
    assert column(done, "time") == [0, 1, 2]


@pytest.mark.full
def test_equal_delays_and_a_buffer_like_the_cohort_are_rounds(process):
    buffered, rounds = process(*SYNC), process()
    assert without_clock(buffered.rows) == rounds.rows and "untested:" not in rounds.out


@pytest.mark.full
def test_the_command_of_the_readme(job):
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    command = re.search(r"experiments.train (--method=fedbuff [^#\n]*)", text)[1].split()
    done = job(*command, "--clients=60", "--rounds=2")
    assert done.status == 0, done.err
    assert column(done, "uploads") == [0, 20] and column(done, "training")[-1] >= 40


@pytest.mark.full
def test_a_stateful_method_of_one_exchange_runs(job):
    done = job("--method=scaffold", "--schedule=buffered:2", "--allow_untested", "--rounds=3")
    assert done.status == 0 and done.rows[-1]["test_loss"] < done.rows[0]["test_loss"]


@pytest.mark.full
def test_clients_off_the_device_change_nothing(process):
    base = ("--method=scaffold", "--schedule=buffered:2,law=lognormal", "--allow_untested")
    done = process(*base)
    assert done.status == 0 and done.rows == process(*base, "--population=host", "--client_state=host").rows


@pytest.mark.parametrize("flags, words", [
    (("--participation=poisson",), "--participation=poisson: --schedule=buffered:3,law=fixed:0.5 says who takes part; leave it out"),
    (("--method=fedlin",), "'fedlin' refuses it: all clients must take part"),
    (("--method=mime",), "'mime' has several exchanges in a round: its clients cannot start from earlier models"),
    (("--schedule=bufered",), "unknown schedule 'bufered'; valid: sync, "),
    (("--schedule=buffered:9",), "--schedule=buffered:9: option 'buffer' of 'buffered': 9 is more than the 8 clients there are"),
    (("--schedule=buffered:2,law=fixd",), "unknown delay law 'fixd'; valid: fixed, .*; did you mean 'fixed'"),
    (("--schedule=buffered:size=2",), "'buffered' has no option 'size'; valid: buffer, "),
    (("--schedule=ticks:0.5",), "'ticks' has all clients in training: choose --cohort=8, not 3")])
def test_what_does_not_go_together_is_one_line(job, flags, words):
    done = job(*SYNC, *flags)
    assert done.status == 2 and done.err.count("\n") == 1
    assert re.search(words, done.err), done.err


def test_a_schedule_that_there_is_not_is_no_matter_of_permission(job):
    done = job("--schedule=bufered:3")
    assert done.status == 2 and done.err.startswith("error: --schedule=bufered:3: unknown schedule 'bufered'; valid: sync, gossip, ")
    assert "did you mean 'buffered'" in done.err and done.err.count("\n") == 1


def test_rounds_belong_to_the_schedule(job, tmp_path):
    folder = f"--workdir={tmp_path / 'run'}"
    assert job(*SYNC, "--rounds=2", folder).status == 0
    longer = job(*SYNC, "--rounds=3", folder)
    assert longer.status == 2 and "rounds: 2 -> 3, which the schedule was rolled out for" in longer.err


@pytest.mark.full
def test_many_seeds_give_what_each_gives_alone(programs, monkeypatch):
    jax.devices()
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    config = configs.make({"method": "fedasync", "schedule": "buffered:1,law=exponential", "task": "digits_logreg", "clients": 6, "cohort": 3,
                           "rounds": 4, "eval_every": 2, "devices": 1, "options": {"batch_size": "full"}})
    runs = many.train(config, seeds=(0, 1), sweep={"lr": (0.1, 0.3)})
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in runs]
    assert rows[0][-1]["time"] == rows[2][-1]["time"] != rows[1][-1]["time"] and rows[0][-1]["test_loss"] != rows[2][-1]["test_loss"]
    alone = run.follow(run.prepare(runs[3].config)).history
    for mine, theirs in zip(rows[3], alone, strict=True):
        assert mine == pytest.approx({k: v for k, v in theirs.items() if k != "seconds"}, rel=1e-6)
