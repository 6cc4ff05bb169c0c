"""Task sequences, vertical partitions and graphs."""
from __future__ import annotations

import hypothesis.strategies as st
import jax
import networkx
import numpy as np
import pytest
from hypothesis import given, settings

from fedjax_lab.data import graph, scenario, sequence, source, sources, vertical

KEY = jax.random.key(0)
fast = settings(max_examples=30, deadline=None)


def people(text="dirichlet:0.3", clients=12, **more):
    return scenario.build(text, sources.load("digits"), key=KEY, clients=clients, **more)


@pytest.mark.parametrize("held", [None, 0.25])
@pytest.mark.parametrize("tasks", [1, 3, 10])
def test_class_incremental_tasks_divide_the_classes(tasks, held):
    whole = people(client_test=held)
    parts = sequence.class_incremental(whole, KEY, tasks)
    classes = [set(np.unique(p.train.examples["y"])) for p in parts]
    assert set.union(*classes) == set(range(10)) and sum(map(len, classes)) == 10
    assert max(map(len, classes)) - min(map(len, classes)) <= 1
    np.testing.assert_array_equal(sum(p.counts for p in parts), whole.counts)
    for t, part in enumerate(parts):
        assert part.clients == 12 and part.manifest["classes_of_task"] == sorted(classes[t])
        assert set(np.unique(part.test.examples["y"])) == set.union(*classes[: t + 1])
        y = part.test.examples["y"][part.test.index] if held is None else part.test.examples["y"]
        before = whole.test.examples["y"][whole.test.index] if held is None else whole.test.examples["y"]
        kept = np.isin(before, part.test.examples["y"])
        np.testing.assert_array_equal(y, before[kept])
        np.testing.assert_array_equal(part.test.size, np.bincount(np.repeat(np.arange(12), whole.test.size)[kept], minlength=12))
    alone = sequence.class_incremental(whole, KEY, tasks, cumulative=False)
    assert [set(np.unique(p.test.examples["y"])) for p in alone] == classes


def test_class_incremental_refuses_more_tasks_than_classes():
    with pytest.raises(ValueError, match="tasks=11 is not valid: there are 10 classes"):
        sequence.class_incremental(people(), KEY, 11)


def test_domain_incremental_shows_everybody_each_domain():
    whole, turned = people(), scenario.stages("dirichlet:0.3+domain_incremental:rotation,groups=4", sources.load("digits"), key=KEY, clients=12)
    assert [part.manifest["task"] for part in turned] == [0, 1, 2, 3]
    for t, part in enumerate(turned):
        np.testing.assert_array_equal(part.train.examples["x"], np.rot90(whole.train.examples["x"], t, (1, 2)))


@fast
@given(features=st.integers(1, 40), examples=st.integers(1, 60), parties=st.integers(1, 6), overlap=st.floats(0, 1),
       shared=st.integers(0, 5))
def test_vertical_parts_cover_columns_and_examples_once(features, examples, parties, overlap, shared):
    if shared > features - parties:
        with pytest.raises(ValueError, match="each party needs one of its own"):
            vertical.vertical(features, examples, KEY, parties, overlap, shared=shared)
        return
    parts = vertical.vertical(features, examples, KEY, parties, overlap, shared=shared)
    held = np.bincount(parts.columns[parts.columns >= 0], minlength=features)
    assert sorted(held) == sorted([1] * (features - shared) + [parties] * shared)
    np.testing.assert_array_equal(np.sort(np.concatenate([parts.aligned, parts.private.index])), np.arange(examples))
    assert all((np.diff(row[row >= 0]) > 0).all() for row in parts.columns)
    assert len(parts.aligned) == round(overlap * examples) and np.ptp(parts.private.size) <= 1


def test_a_party_sees_its_columns_in_order():
    x = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(vertical.party(x, np.array([1, 4, -1])), [[1, 4, 0], [7, 10, 0]])
    halves = vertical.vertical(6, 2, KEY, 2, shuffle=False).columns
    assert halves.tolist() == [[0, 1, 2], [3, 4, 5]]


def pictures(examples=10, height=4, width=3):
    x = np.arange(examples * height * width, dtype=np.float32).reshape(examples, height, width, 1)
    return source.make("pictures", {"x": x, "y": np.arange(examples, dtype=np.int32) % 3}, {"x": x[:4] + 0.5, "y": np.zeros(4, np.int32)}, 3)


def test_parties_are_clients_whose_aligned_examples_come_first_and_whose_labels_the_server_has():
    origin = pictures()
    parts = vertical.vertical(12, 10, KEY, 2, 0.6, shuffle=False)
    people = vertical.build(origin, parts, "vertical:2,overlap=0.6,shuffle=false")
    assert people.clients == 2 and people.train.size.tolist() == [8, 8] and people.counts.shape == (2, 3) and not people.counts.any()
    np.testing.assert_array_equal(people.public["y"], origin.train["y"][parts.aligned])
    x, starts = people.train.examples["x"], people.train.offset
    halves = [x[s: s + 6] for s in starts]
    np.testing.assert_array_equal(np.concatenate(halves, 1), origin.train["x"][parts.aligned])  # a picture's upper and lower rows
    alone = np.concatenate([parts.private.index[:2], parts.private.index[2:]])
    np.testing.assert_array_equal(x[6:8], origin.train["x"][alone[:2], :2])
    np.testing.assert_array_equal(x[14:], origin.train["x"][alone[2:], 2:])
    assert (people.train.examples["y"] == -1).all() and people.test.size.tolist() == [0, 0]
    np.testing.assert_array_equal(people.test.examples["x"].reshape(4, 4, 3, 1), origin.test["x"])


def test_columns_that_are_no_whole_rows_are_flat_and_padded():
    origin = pictures()
    parts = vertical.vertical(12, 10, KEY, 5, shuffle=False)
    people = vertical.build(origin, parts, "vertical:5,shuffle=false")
    assert people.train.examples["x"].shape == (50, 3) and people.test.examples["x"].shape == (4, 5, 3)
    assert not people.test.examples["x"][:, 4, 2].any() and (people.test.examples["x"][:, 0] > 0).all()
    real = origin._replace(train={**origin.train, "y": origin.train["y"].astype(np.float32)}, classes=0)
    assert np.isnan(vertical.build(real, parts, "vertical:5").train.examples["y"]).all()
    with pytest.raises(ValueError, match="makes the labels the public examples"):
        vertical.build(origin._replace(public={"x": origin.train["x"]}), parts, "public:3+vertical:5")


def caveman(cliques=6, size=7):
    """Cliques in a ring, as a source; the labels are the cliques'."""
    edges = np.array(networkx.connected_caveman_graph(cliques, size).edges)
    edges = np.concatenate([edges, edges[:, ::-1]]).astype(np.int32)
    y = np.repeat(np.arange(cliques), size).astype(np.int32)
    train = np.arange(len(y)) % 2 == 0
    nodes = {"x": np.eye(len(y), dtype=np.float32), "y": y, "train_mask": train, "test_mask": ~train}
    return source.make("caveman", nodes, nodes, cliques)._replace(edges=edges)


def test_communities_are_found_and_dealt():
    cave = caveman()
    part = graph.community(42, cave.edges, KEY, 6)
    assert (part.size == 7).all() and all(len(set(cave.train["y"][part.index[o: o + 7]])) == 1 for o in part.offset)
    two = graph.community(42, cave.edges, KEY, 2)
    assert two.size.tolist() == [21, 21]


@fast
@given(nodes=st.integers(1, 40), links=st.integers(0, 60), seed=st.integers(0, 20), data=st.data())
def test_communities_hold_every_node_once(nodes, links, seed, data):
    edges = np.random.default_rng(seed).integers(0, nodes, (links, 2))
    clients = data.draw(st.integers(1, nodes))
    part = graph.community(nodes, edges, KEY, clients)
    np.testing.assert_array_equal(np.sort(part.index), np.arange(nodes))
    assert len(part.size) == clients and part.size.min() >= 1


def test_overlapping_clients_share_a_community():
    cave = caveman()
    part = graph.overlapping(42, cave.edges, KEY, 10, copies=5, share=0.5)
    held = [set(part.index[o: o + n]) for o, n in zip(part.offset, part.size)]
    assert all(len(h) == round(0.5 * 21) for h in held) and not set.union(*held[:5]) & set.union(*held[5:])
    assert held[0] & held[1] and held[0] != held[1]


@pytest.mark.parametrize("held", [None, 0.3])
@pytest.mark.parametrize("text", ["community", "iid", "overlapping:2,share=0.8"])
def test_subgraphs_are_induced_and_padded(text, held):
    cave = caveman()
    whole = scenario.build(text, cave, key=KEY, clients=4, client_test=held)
    batch, links = whole.train.examples, {tuple(e) for e in cave.edges}
    kept = 0
    for i in range(4):
        real = batch["x"][i].any(1)
        names = np.where(real, batch["x"][i].argmax(1), -1)
        local = batch["edges"][i][(batch["edges"][i] >= 0).all(1)]
        pairs, mine = {tuple(names[list(e)]) for e in local}, set(names[real])
        assert pairs == {(a, b) for a, b in links if a in mine and b in mine} and len(pairs) == len(local)
        train, test = batch["y"][i], whole.test.examples["y"][i]
        assert ((train >= 0) ^ (test >= 0))[real].all() and (train[~real] == -1).all() and (test[~real] == -1).all()
        np.testing.assert_array_equal(np.maximum(train, test)[real], cave.train["y"][names[real]])
        np.testing.assert_array_equal(whole.counts[i], np.bincount(train[train >= 0], minlength=6))
        if held is None:
            assert cave.train["train_mask"][names[train >= 0]].all() and cave.train["test_mask"][names[test >= 0]].all()
        elif "overlapping" not in text:
            assert (test >= 0).sum() == round(held * real.sum())
        kept += len(pairs)
    assert whole.manifest["kept_edges"] == kept and whole.train.size.tolist() == [1] * 4 and whole.clients == 4


def test_a_shared_node_is_never_trained_here_and_tested_there():
    whole = scenario.build("overlapping:copies=4,share=0.7", caveman(), key=KEY, clients=4, client_test=0.5)
    trained, tested = (set(s.examples["x"].argmax(2)[s.examples["y"] >= 0]) for s in (whole.train, whole.test))
    assert not trained & tested and len(tested) == pytest.approx(len(trained | tested) / 2, abs=2)


def test_clients_without_labels_have_no_example():
    cave = caveman()
    cave.train["train_mask"][:7] = False
    whole = scenario.build("community", cave, key=KEY, clients=6)
    assert sorted(whole.train.size) == [0] + [1] * 5 and len(whole.train.examples["y"]) == 5
    assert whole.test.size.tolist() == [1] * 6
    without = int(np.argmin(whole.train.size))
    assert not whole.counts[without].any() and whole.counts.sum() == cave.train["train_mask"].sum()
    after = without + 1 if without < 5 else without - 1
    np.testing.assert_array_equal(whole.train.examples["x"][whole.train.offset[after]], whole.test.examples["x"][after])
    with pytest.raises(ValueError, match="client_test=1.5 is not valid"):
        scenario.build("community", cave, key=KEY, clients=6, client_test=1.5)


@pytest.mark.parametrize("text, clients, says", [
    ("community", None, "needs a number of clients"), ("community+rotation", 4, "'rotation' needs images"), ("iid+semi", 4,
                                                                                                             "'semi' needs a"),
    ("subset:10+iid", 4, "is a graph"), ("community", 43, "clients=43 is not valid: there are 42"), ("overlapping:copies=0", 4,
                                                                                                     "int >= 1")])
def test_graphs_refuse_what_they_cannot_do(text, clients, says):
    with pytest.raises(ValueError, match=says):
        scenario.build(text, caveman(), key=KEY, clients=clients)
