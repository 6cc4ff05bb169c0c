"""Wires, aggregators and server optimizers put into methods by replacing a field."""
from __future__ import annotations

import os
import re

import bench
import jax
import numpy as np
import pytest

from fedjax_lab import registry
from fedjax_lab.parts.aggregators.coordinate import median, trimmed_mean
from fedjax_lab.parts.cohorts.text import from_text
from fedjax_lab.parts.servers import optimizers
from fedjax_lab.parts.transforms.composed import _wire, composed
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.parts.wires.codes import chain
from fedjax_lab.parts.wires.qsgd import qsgd
from fedjax_lab.parts.wires.topk import topk
from fedjax_lab.types import Census


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


@pytest.mark.full
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


WIRES_UP = (None, "identity", "topk:0.4", "randk:0.5", "qsgd:15", "signsgd", "half", "topk:0.5+qsgd:15", "topk:0.7+half")
WIRES_DOWN = (None, "identity", "half")
AGGREGATORS = (None, "mean", "median", "trimmed-mean:0.2")
SERVERS = (None, "sgd:lr=0.5", "momentum:beta=0.5", "adam:lr=0.01", "yogi:lr=0.01", "adagrad:lr=0.01")
PARTICIPATIONS = ("uniform", "poisson", "bernoulli:0.5", "cyclic", "weighted", "markov", "uniform+dropout:0.3", "uniform+stragglers:0.5,steps=0.5")


def fitting():
    """Methods that train a quadratic with part of the clients."""
    names, people = [], bench.population()
    census = Census(people.clients, people.train.size)
    for name, factory in registry.catalog("method").items():
        try:
            method = bench.make(name)
            jax.eval_shape(lambda key, method=method: method.init_server(key, bench.TASK.init(key), census), jax.random.key(0))
            if "participation" not in method.info.refuses:
                names.append(name)
        except ValueError:
            assert factory.info.name
    return names


def drawn(count: int, seed: int):
    """Combinations from the full product, without those that a method refuses."""
    rng, names, found = np.random.default_rng(seed), fitting(), []
    while len(found) < count:
        name, *parts = (pick[rng.integers(len(pick))] for pick in (names, WIRES_UP, WIRES_DOWN, AGGREGATORS, SERVERS, PARTICIPATIONS))
        try:
            composed(bench.make(name), **dict(zip(("wire_up", "wire_down", "aggregator", "server"), parts)))
        except ValueError as error:
            assert f"'{name}'" in str(error)
            continue
        found.append((name, *parts))
    return found


SEED = int(os.environ.get("COMPOSITION_SEED", "0"))


@pytest.mark.parametrize("name, up, down, aggregator, server, participation", [
    pytest.param(*row, marks=[pytest.mark.full] if at >= 6 else []) for at, row in enumerate(drawn(20, SEED))], ids=lambda value: str(value))
def test_any_combination_trains(name, up, down, aggregator, server, participation):
    print("seed", SEED)
    people = bench.population()
    people = people._replace(counts=np.tile(np.float32([3, 1]), (people.clients, 1)))  # labels, for those that ask
    method = composed(bench.make(name), wire_up=up, wire_down=down, aggregator=aggregator, server=server)
    who = from_text(participation, people.clients, 3)
    state, record = bench.run(method, people, rounds=3, cohort=who)
    assert np.isfinite(np.asarray(method.deploy(state.server)["x"])).all()
    assert np.asarray(record.rounds["finite"]).all()
    plain = bench.run(bench.make(name), people, rounds=3, cohort=who)[1].rounds
    for way, text in (("bytes_up", up), ("bytes_down", down)):
        saved = np.concatenate([(np.asarray(record.rounds[k], np.int64) - plain[k]).ravel() for k in plain if k.endswith(way)])
        each = 0 if text is None else sent(text) - 12
        assert set(saved) <= {k * each for k in range(len(method.exchanges) + 1)}  # in each exchange a model goes through it, or none
        assert saved.any() == (each != 0)


def sent(text: str) -> int:
    """Bytes of a model of three numbers."""
    wire = _wire("wire_up", text)
    value = {"x": np.ones(3, np.float32)}
    code, _ = wire.encode(jax.random.key(0), value, wire.init(value))
    return -(-int(wire.bits(code)) // 8)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "scaffold-m-vr"])
@pytest.mark.parametrize("parts", [{"wire_up": "identity"}, {"wire_down": "identity"}, {"aggregator": "mean"}, {"wire_up": "identity+identity"}], ids=str)
def test_the_identity_changes_no_bit(name, parts):
    np.testing.assert_array_equal(end(composed(bench.make(name), **parts))[0], bench.path(name, rounds=3))


@pytest.mark.parametrize("name, parts, message", [
    ("fedadam", {"server": "sgd"}, "--server=sgd: 'fedadam' refuses it"),
    ("fedau", {"aggregator": "median"}, "--aggregator=median: 'fedau' has its own rule for the model"),
    ("fedavg", {"wire_up": "zip"}, "--wire_up=zip: unknown wire 'zip'"),
    ("fedavg", {"server": "adam:rate=1"}, "--server=adam:rate=1: 'adam' has no option 'rate'"),
])
def test_what_is_refused_is_named(name, parts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        composed(bench.make(name), **parts)
