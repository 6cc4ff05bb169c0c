"""Parties with parts of the features, from the command line: what is trained, counted, resumed and refused."""
from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjax_lab.data import scenario, sources
from fedjax_lab.workdir import load

BASE = ("--task=digits_mlp:widths=16", "--partition=vertical:2,shuffle=false,overlap=0.5", "--rounds=100", "--eval_every=50", "--devices=1")
SPLIT = ("--method=splitnn", "--set=lr=0.3", "--set=batch_size=32", "--set=top=16")


@pytest.mark.full
def test_parties_train_one_network_and_go_on_where_they_were(job):
    whole = job(*SPLIT, base=BASE)
    assert [row["bytes_up"] for row in whole.rows] == [0, *(way["bytes_down"] for way in whole.rows[1:])]
    assert whole.rows[1]["bytes_up"] == (2 * 721 + 4 * 32) * 2 * 16 * 4 and whole.rows[-1]["test_accuracy"] > 0.5 > whole.rows[0]["test_accuracy"]
    cut = job(*SPLIT, "--rounds=50", base=BASE)
    rest = job(*SPLIT, f"--workdir={cut.path}", base=BASE)
    origin = scenario.build("vertical:2,shuffle=false", sources.load("digits"), key=jax.random.key(0)).test.examples
    right = load(whole.path).predict(origin["x"]).argmax(-1) == origin["y"]
    assert np.mean(right) == pytest.approx(whole.rows[-1]["test_accuracy"], abs=1e-6)
    assert rest.status == 0 and "going on after round 50" in rest.out and cut.rows == whole.rows


@pytest.mark.parametrize("flags, words", [
    (("--method=fedavg",), "--schedule=sync: 'fedavg' is for clients, and vertical:2,shuffle=false,overlap=0.5 makes parties with parts of the features"),
    (("--partition=iid",), "'splitnn' is for parties, and iid makes clients with examples of their own; choose --partition=vertical:2, for example"),
    (("--clients=3",), "--clients=3: the partition makes 2 parties"),
    (("--cohort=3",), "--cohort=3: more than the 2 clients there are"),
    (("--schedule=sync",), "--schedule=sync: 'splitnn' was published for --schedule=vertical"),
    (("--wire_up=half",), "--wire_up=half: 'splitnn' refuses it: models stay where they are"),
    (("--privacy=dp-fedavg:noise=1",), "--privacy=dp-fedavg:noise=1"),
])
def test_refused(job, flags, words):
    done = job(*SPLIT[:1], *flags, base=BASE)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err
