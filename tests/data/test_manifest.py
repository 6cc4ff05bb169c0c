"""The facts of a population against loops over its clients, and the picture against the facts."""
from __future__ import annotations

import json
import types

import hypothesis.strategies as st
import jax
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings

from fedjax_lab.data import manifest, picture, population, scenario, source, sources, vertical

KEY = jax.random.key(0)
fast = settings(max_examples=30, deadline=None)
TEXTS = ["iid", "dirichlet:0.3", "dirichlet_classes:0.3", "pathological:2", "longtail:50+shards", "public:200+quantity:1", "dirichlet:0.5+concept:3",
         "iid+rotation:2", "iid+semi:0.2"]


def people(text="dirichlet:0.3", clients=12, **more):
    return scenario.build(text, sources.load("digits"), key=KEY, clients=clients, **more)


def own(crowd, name):
    """Each client's rows of a field of its training examples, by a loop."""
    train = crowd.train
    return [train.examples[name][o: o + n] for o, n in zip(train.offset, train.size)]


def made(y, classes=0, clients=4):
    """A population of these labels, as many examples for each client up to one."""
    arrays = {"x": np.zeros((len(y), 2), np.float32), "y": y}
    return scenario.build("iid", source.make("toy", arrays, arrays, classes), key=KEY, clients=clients)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("held", [None, 0.25])
def test_facts_are_those_of_the_clients(text, held):
    crowd = people(text, client_test=held)
    facts = json.loads(manifest.text(crowd.manifest))
    labels, sizes = own(crowd, "y"), crowd.train.size
    totals = np.bincount(np.concatenate(labels), minlength=10)
    shares = [np.bincount(y, minlength=10) / len(y) for y in labels]
    assert facts["label_totals"] == totals.tolist() and facts["labels"] == "class" and facts["partition"] == text
    assert (facts["clients"], facts["examples"], facts["test"]) == (12, sum(sizes), sum(crowd.test.size))
    assert [facts["size"][k] for k in ("min", "median", "max")] == [min(sizes), np.median(sizes), max(sizes)]
    assert facts["entropy"] == pytest.approx(np.mean([-sum(p * np.log(p) for p in s if p) for s in shares]), rel=1e-5, abs=1e-6)
    assert facts["total_variation"] == pytest.approx(np.mean([abs(s - totals / totals.sum()).sum() / 2 for s in shares]), rel=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_hashes_follow_the_key_and_nothing_else(text):
    build = lambda key, **more: scenario.build(text, sources.load("digits"), key=jax.random.key(key), clients=12, **more).manifest["sha256_partition"]
    found = [build(0), build(1), build(0, client_test=0.3), build(1, client_test=0.3)]
    assert build(0) == found[0] and build(0, client_test=0.3) == found[2] and len(set(found)) == 4


def test_hashes_tell_shifts_and_labels_apart():
    texts = ["iid", "iid+rotation:2", "iid+rotation:4", "iid+inversion", "iid+concept:2", "iid+concept:2,law=cycle", "iid+semi:0.1", "iid+semi:0.2",
             "iid+semi:0.2,where=some"]
    assert len({people(text).manifest["sha256_partition"] for text in texts}) == len(texts)
    tasks = scenario.stages("iid+class_incremental:3", sources.load("digits"), key=KEY, clients=12)
    assert len({task.manifest["sha256_partition"] for task in tasks}) == 3


@fast
@given(y=st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=80))
def test_targets_are_cut_into_kinds(y):
    crowd = made(np.array(y, np.float32))
    what, counts, names = manifest.profile(crowd.train, crowd.counts)
    distinct = np.unique(np.array(y, np.float32))
    assert what == "target" and counts.shape == (4, len(names)) and len(names) <= manifest.FEW
    np.testing.assert_array_equal(counts.sum(1), crowd.train.size)
    if len(distinct) <= manifest.FEW:
        expected = [[(mine == value).sum() for value in distinct] for mine in own(crowd, "y")]
        np.testing.assert_array_equal(counts, expected)
    elif len(names) == 10:
        edges = np.quantile(np.array(y, np.float32), np.linspace(0, 1, 11))
        np.testing.assert_array_equal(counts.sum(0)[:1], (np.array(y, np.float32) < edges[1]).sum())


def test_tokens_are_counted_where_they_are_no_padding():
    y = np.random.default_rng(0).integers(-1, 7, (30, 5)).astype(np.int32)
    crowd = made(y, 7)
    what, counts, names = manifest.profile(crowd.train, crowd.counts)
    assert what == "token" and names == tuple("0123456")
    np.testing.assert_array_equal(counts, [np.bincount(mine[mine >= 0], minlength=7) for mine in own(crowd, "y")])
    empty = made(np.full((4, 3), -1, np.int32), 7)
    assert "entropy" not in empty.manifest and manifest.profile(empty.train, empty.counts).counts.sum() == 0


def test_clients_without_labels_do_not_count():
    counts = np.array([[4, 0], [0, 0], [1, 3]], np.float32)
    np.testing.assert_allclose(manifest.distance(counts), [3 / 8, np.nan, 3 / 8])
    people_of = types.SimpleNamespace(size=np.array([4, 2, 4]), examples={})
    facts = manifest.facts(people_of, people_of, counts)
    assert facts["total_variation"] == 3 / 8 and facts["entropy"] == pytest.approx(-(np.log(1 / 4) / 4 + 3 * np.log(3 / 4) / 4) / 2)
    assert facts["size"] == {"min": 2, "10%": pytest.approx(2.4), "median": 4, "90%": 4, "max": 4}


def test_text_is_json_with_a_fact_a_line():
    facts = {"a": 1, "b": [1, 2], "c": {"d": np.float32(0.5)}, "e": np.arange(2)}
    text = manifest.text(facts)
    assert json.loads(text) == {"a": 1, "b": [1, 2], "c": {"d": 0.5}, "e": [0, 1]} and text.count("\n") == 6


@pytest.mark.parametrize("clients", [12, 400])
@pytest.mark.parametrize("text", ["dirichlet:0.3", "shards", "iid+concept:2"])
def test_the_picture_shows_what_the_manifest_says(tmp_path, text, clients):
    crowd = people(text, clients)
    shown, facts = picture.plot(crowd, tmp_path / "p.png"), crowd.manifest
    assert matplotlib.image.imread(tmp_path / "p.png").shape[:2] == (484, 1430)
    assert shown["shares"].shape == (min(clients, 200), 10) and shown["clients"][[0, -1]].tolist() == [0, clients - 1]
    assert shown["size"].sum() == facts["examples"] and len(shown["size"]) == facts["clients"]
    assert [shown["size"].min(), np.median(shown["size"]), shown["size"].max()] == [facts["size"][k] for k in ("min", "median", "max")]
    if clients == 12:
        np.testing.assert_allclose(shown["size"] @ shown["shares"], facts["label_totals"], rtol=1e-6)
        assert shown["distance"].mean() == pytest.approx(facts["total_variation"])
        whole = np.array(facts["label_totals"]) / facts["examples"]
        np.testing.assert_allclose(shown["distance"], 0.5 * np.abs(shown["shares"] - whole).sum(1), rtol=1e-5)
        entropy = -(shown["shares"] * np.log(np.maximum(shown["shares"], 1e-30))).sum(1).mean()
        assert entropy == pytest.approx(facts["entropy"], rel=1e-5)


def test_regressions_show_tenths_of_the_targets(tmp_path):
    crowd = scenario.build("natural", sources.load("regression:30"), key=KEY)
    shown, facts = picture.plot(crowd, tmp_path / "p.png"), crowd.manifest
    assert facts["labels"] == "target" and facts["label_totals"] == [120] * 10 and len(facts["label_names"]) == 10
    np.testing.assert_allclose(shown["size"] @ shown["shares"], 120, rtol=1e-6)
    assert shown["distance"].mean() == pytest.approx(facts["total_variation"])


def test_without_labels_the_picture_is_the_sizes(tmp_path):
    crowd = scenario.build("natural", sources.load("quadratic:5,rows=3"), key=KEY)
    shown = picture.plot(crowd, tmp_path / "p.png")
    assert list(shown) == ["size"] and shown["size"].tolist() == [3] * 5 and "entropy" not in crowd.manifest
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_the_picture_of_parties(tmp_path):
    parts = vertical.vertical(9, 40, KEY, 3, 0.25, shared=2)
    facts = {"source": "toy", "partition": "vertical:3", **vertical.facts(parts)}
    shown = picture.plot_parties(parts, facts, tmp_path / "p.png")
    assert (facts["parties"], facts["features"], facts["aligned"]) == (3, 9, 10) and sum(facts["private"]) == 30
    assert shown["held"].sum(1).tolist() == facts["columns"] and sorted(shown["held"].sum(0)) == [1] * 7 + [3] * 2
    assert shown["alone"].tolist() == facts["private"]
    assert vertical.facts(vertical.vertical(9, 40, jax.random.key(1), 3, 0.25, shared=2))["sha256_partition"] != facts["sha256_partition"]


def test_a_populations_own_arrays_have_facts_too():
    crowd = population.from_arrays(np.zeros((6, 2)), np.array([0, 1, 0, 1, 2, 2]), [[0, 2, 5], [1, 3]], np.zeros((2, 2)), np.array([0, 1]), key=KEY)
    assert crowd.manifest["label_totals"] == [2, 2, 1] and crowd.manifest["classes"] == 3
