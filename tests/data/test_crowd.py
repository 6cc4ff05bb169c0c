"""Generated and file-backed populations: what they hold, and that a run on them is the run on the devices."""
from __future__ import annotations

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_lab
from fedjax_lab import config, run
from fedjax_lab.data import crowd, mapped

RUN = {"method": "scaffold", "cohort": 20, "rounds": 3, "eval_every": 2, "eval_clients": 5, "options": {"lr": 0.1, "batch_size": 5}}


def test_rows_are_standard_normal_and_independent():
    x = crowd.normal(0, 2, np.arange(20_000), 5)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(x.T) - np.eye(5)).max() < 0.03
    assert np.abs(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1]) < 0.03
    assert not np.array_equal(x, crowd.normal(1, 2, np.arange(20_000), 5)) and not np.array_equal(x, crowd.normal(0, 1, np.arange(20_000), 5))


def test_a_client_is_the_same_in_a_crowd_of_any_size():
    small, large = (crowd.crowd(n, size=4, dim=3).ready for n in (10, 1000))
    rows = np.arange(9 * 4, 10 * 4)
    for field in "xy":
        np.testing.assert_array_equal(small.train.examples[field][rows], large.train.examples[field][rows])
    np.testing.assert_array_equal(np.asarray(large.train.examples["x"])[rows], large.train.examples["x"][rows])
    assert large.train.examples["x"].shape == (4000, 3) and np.asarray(large.train.offset)[:3].tolist() == [0, 4, 8]


def test_labels_are_the_teachers():
    made = crowd.crowd(50, size=4, dim=6, classes=3)
    x, y = (np.asarray(made.ready.train.examples[k]) for k in "xy")
    np.testing.assert_array_equal(y, np.argmax(x @ made.truth["weights"], 1))
    centers = x.reshape(50, 4, 6).mean(1)
    assert 1.0 < centers.var() < 1.5  # shift^2 + 1 / 4


def test_fifteen_million_clients_are_no_more_than_a_few():
    made = crowd.crowd(15_000_000).ready
    assert made.clients == 15_000_000 and made.train.examples["x"][np.array([299_999_999])].shape == (1, 32)


@pytest.mark.parametrize("how", [
    pytest.param({"population": "host"}, marks=pytest.mark.full), pytest.param({"population": "disk"}, marks=pytest.mark.full),
    {"population": "disk", "client_state": "disk"},
], ids=str)
def test_the_run_of_the_device(how, tmp_path):
    task = "crowd_logreg:clients=300,size=6,dim=4,classes=3"
    there, away = (fedjax_lab.train(task=task, cache_dir=str(tmp_path), **RUN, **h) for h in ({}, how))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(there.model.params), jax.device_get(away.model.params))
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in (there, away)]
    assert strip[0] == strip[1]


@pytest.mark.full
def test_any_source_may_lie_on_disk(tmp_path):
    settings = {**RUN, "task": "digits_logreg", "partition": "dirichlet:0.3", "clients": 40, "cache_dir": str(tmp_path)}
    there, away = (fedjax_lab.train(**settings, population=p) for p in ("device", "disk"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(there.model.params), jax.device_get(away.model.params))
    assert there.history[-1]["client_test_accuracy_mean"] == away.history[-1]["client_test_accuracy_mean"]
    files = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("populations/*/*.npy")}
    fedjax_lab.train(**{**settings, "rounds": 1}, population="disk")
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("populations/*/*.npy")} == files and "train-x-x.npy" in files


def test_files_appear_whole_or_not_at_all(tmp_path):
    made = crowd.crowd(20, size=2, dim=2).ready

    class Broken(crowd.Generated):
        def __getitem__(self, at):
            raise OSError(28, "No space left on device")

    broken = made._replace(train=made.train._replace(examples={"x": Broken(None, (40, 2), np.float32)}))
    with pytest.raises(ValueError, match="--population=disk: .* cannot be written .No space left on device."):
        mapped.mapped(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_crowd_has_its_own_clients():
    with pytest.raises(ValueError, match="--partition=iid: 'crowd' makes its own clients"):
        fedjax_lab.train(task="crowd_logreg:clients=30", partition="iid", rounds=1)


MEASURE = """
import json, sys
from fedjax_lab import config, run
prepared = run.prepare(config.make(json.loads(sys.argv[1])))
for now in run.rounds(prepared):
    pass
kinds = ("RssAnon", "VmHWM")
print(json.dumps({line.split(":")[0]: int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(kinds)}))
"""


def measured(task: str, cache, **settings) -> dict[str, float]:
    """MB of a process after a run: its own memory, and the most it ever had, mapped files included."""
    given = {"task": task, "cohort": 50, "rounds": 4, "eval_every": 2, "eval_clients": 5, "options": {"lr": 0.1, "batch_size": 5}, "cache_dir": str(cache)}
    out = subprocess.run([sys.executable, "-c", MEASURE, json.dumps({**given, **settings})], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.full
def test_memory_does_not_follow_the_population(tmp_path):
    """A population of 1.3 GB adds next to nothing to the process's own memory; on the device it would add all of it."""
    large, held = 1_000_000, {}
    for n, where in ((2_000, "disk"), (large, "disk"), (large, "host")):
        for _ in range(2):  # the first makes the folder and compiles, which leaves an own size behind
            held[n, where] = measured(f"crowd_logreg:clients={n},dim=16,size=20", tmp_path, population=where)["RssAnon"]
    whole = large * 20 * 17 * 4 / 2**20
    assert max(held[large, "disk"], held[large, "host"]) - held[2_000, "disk"] < 0.1 * whole, held


def on_devices(tree) -> int:
    """Bytes of the arrays that are on devices."""
    return sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


@pytest.mark.parametrize("where", ["host", "disk"])
def test_rows_of_a_million_clients_leave_the_devices_alone(where, tmp_path):
    held = []
    for n in (1_000, 1_000_000):
        settings = {**RUN, "task": f"crowd_logreg:clients={n},size=6,dim=4,classes=3", "population": "host", "client_state": where}
        sim = run.prepare(config.make({**settings, "cache_dir": str(tmp_path)})).simulation
        state = sim.init(sim.world, jax.random.key(0))
        held.append((on_devices((sim.world, state)), sim.plan["memory_bytes"]))
    assert held[0] == held[1] and sum(x.nbytes for x in jax.tree.leaves(state.clients.rows)) >= 1_000_000 * 4 * 3 * 4


@pytest.mark.full
def test_rows_in_files_take_no_memory(tmp_path):
    """SCAFFOLD on 1,000,000 clients, whose rows are 1.3 GB."""
    few, many = (measured(f"crowd_logreg:clients={n}", tmp_path, method="scaffold", population="host", client_state="disk") for n in (1_000, 1_000_000))
    assert many["VmHWM"] - few["VmHWM"] < 150


@pytest.mark.full
def test_ten_thousand_clients_of_the_2nn_in_a_round(tmp_path):
    task = "crowd_mlp:clients=10000,dim=784,size=2,widths=200/200"
    assert measured(task, tmp_path, population="host", cohort=10_000, rounds=1, eval_every=1, options={"lr": 0.1, "batch_size": 2})["VmHWM"] < 8000


@pytest.mark.full
def test_fifteen_million_clients_take_no_memory(tmp_path):
    few, many = (measured(f"crowd_logreg:clients={n}", tmp_path, population="host") for n in (15_000, 15_000_000))
    assert many["VmHWM"] - few["VmHWM"] < 150


@pytest.mark.full
@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_round_costs_what_its_cohort_costs(where, tmp_path):
    """1,000 of 1,000,000 clients against 1,000 of 10,000, interleaved."""
    sims, states, seconds = {}, {}, {10_000: [], 1_000_000: []}
    for n in seconds:
        settings = {"task": f"crowd_logreg:clients={n},dim=4,size=20", "population": where, "cohort": 1000, "rounds": 100, "eval_every": 4,
                    "eval_clients": 5, "options": {"lr": 0.1, "batch_size": 20}, "cache_dir": str(tmp_path)}
        sims[n] = run.prepare(config.make(settings)).simulation
        states[n] = sims[n].init(sims[n].world, jax.random.key(0))
    for turn in range(12):
        for n, sim in sims.items():
            start = time.perf_counter()
            states[n], _ = jax.block_until_ready(sim.segment(sim.world, states[n], jnp.int32(4 * turn), jnp.int32(4)))
            seconds[n].append(time.perf_counter() - start)
    small, large = (np.array(seconds[n][2:]) for n in (10_000, 1_000_000))
    assert np.median(large / small) <= 1.3
