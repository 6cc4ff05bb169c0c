"""Wires, aggregators and server optimizers put into methods by replacing a field."""
from __future__ import annotations

import bench
import jax
import numpy as np
import pytest

from fedjax_lab.parts.aggregators.coordinate import median, trimmed_mean
from fedjax_lab.parts.servers import optimizers
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.parts.wires.codes import chain
from fedjax_lab.parts.wires.qsgd import qsgd
from fedjax_lab.parts.wires.topk import topk


def end(method, **options):
    state, record = bench.run(method, rounds=3, **options)
    return np.asarray(method.deploy(state.server)["x"]), state, record


def test_sending_all_entries_is_sending_the_change():
    method = bench.make("fedavg")
    x, state, record = end(method._replace(up={"model": topk(1.0)}))
    np.testing.assert_array_equal(x, bench.path("fedavg", rounds=3))
    assert record.rounds["bytes_up"][0].tolist() == [-(-3 * (32 + 2) // 8)] * 3
    assert not any(np.asarray(row).any() for row in jax.tree.leaves(state.wires))


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn"])
def test_what_is_not_sent_is_remembered_by_those_who_took_part(name):
    method = bench.make(name)
    state, record = bench.run(method._replace(up={**method.up, "model": topk(0.3)}), rounds=1)
    rows = np.concatenate([np.asarray(row).reshape(6, -1) for row in jax.tree.leaves(state.wires)], 1)
    assert rows[[0, 2, 4]].any(1).all() and not rows[[1, 3, 5]].any()
    others = 12 if name == "scaffold" else 0
    assert record.rounds["bytes_up"][0].tolist() == [-(-(32 + 2) // 8) + others] * 3


def test_a_chain_trains():
    method = bench.make("fedavg")
    long = {"rounds": 200, "cohort": 6}
    state, _ = bench.run(method._replace(up={"model": chain(topk(0.4), qsgd(255))}), **long)
    plain = bench.path("fedavg", **long)
    assert np.linalg.norm(state.server["x"] - plain) < 0.1 * np.linalg.norm(plain - 1)


def test_a_median_of_one_is_its_upload_and_of_many_is_not_the_mean():
    for name in ("fedavg", "scaffold"):
        method = bench.make(name)
        robust = method._replace(aggregate={**method.aggregate, "model": median()})
        np.testing.assert_allclose(end(robust, cohort=1)[0], bench.path(name, rounds=3, cohort=1), rtol=1e-6)
        assert np.abs(end(robust)[0] - bench.path(name, rounds=3)).max() > 1e-3
    untrimmed = bench.make("fedavg")._replace(aggregate={"model": trimmed_mean(0.0)})
    np.testing.assert_allclose(end(untrimmed)[0], bench.path("fedavg", rounds=3), rtol=1e-6)


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "fedcm", "fedvarp", "feddyn", "scaffold-m-vr", "savic"])
def test_the_plain_server_optimizer_changes_nothing(name):
    x, _, _ = end(served(bench.make(name), optimizers.sgd()))
    np.testing.assert_allclose(x, bench.path(name, rounds=3), rtol=1e-6)


def test_fedadam_is_fedavg_served_by_adam():
    x, _, _ = end(served(bench.make("fedavg"), optimizers.adam()))
    np.testing.assert_array_equal(x, bench.path("fedadam", rounds=3))
