from __future__ import annotations

import hashlib
import json

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from fedjax_lab.data import draw, partition, population, source, sources

KEY = jax.random.key(0)
fast = settings(max_examples=30, deadline=None)


def toy(examples, classes, tests, seed, keys=None, test_keys=None):
    """A source whose x names the example, so that every row can be followed."""
    generator = np.random.default_rng(seed)
    sides = []
    for start, count in ((0, examples), (10**6, tests)):
        x = (start + np.arange(count, dtype=np.float32))[:, None]
        sides.append({"x": x, "y": generator.integers(0, classes, count).astype(np.int32)})
    return source.make("toy", *sides, classes, keys, test_keys)


def rows(stream, client):
    at = np.arange(stream.offset[client], stream.offset[client] + stream.size[client])
    return at if stream.index is None else stream.index[at]


@fast
@given(examples=st.integers(1, 150), classes=st.integers(1, 6), tests=st.integers(1, 80), seed=st.integers(0, 50), data=st.data())
def test_clients_hold_their_partition_and_test_like_they_train(examples, classes, tests, seed, data):
    origin = toy(examples, classes, tests, seed)
    part = partition.make("dirichlet:0.3,sizes=lognormal", origin, key=KEY, clients=data.draw(st.integers(1, examples)))
    people = population.build(origin, part, key=KEY)
    assert people.clients == len(part.size) and people.train.index is None
    have = np.bincount(origin.test["y"], minlength=classes)
    for i in range(people.clients):
        mine = part.index[part.offset[i]: part.offset[i] + part.size[i]]
        np.testing.assert_array_equal(people.train.examples["x"][rows(people.train, i), 0], mine)
        counts = np.bincount(origin.train["y"][mine], minlength=classes)
        np.testing.assert_array_equal(people.counts[i], counts)
        at = rows(people.test, i)
        assert len(at) >= 1 and len(set(at)) == len(at)
        reachable = np.where(have > 0, counts, 0)
        reachable = reachable if reachable.any() else have
        share = np.clip(np.round(len(mine) * (tests / examples)), 1, tests)
        expected = np.minimum(share * reachable / reachable.sum(), have)
        assert np.abs(np.bincount(origin.test["y"][at], minlength=classes) - expected).max() < 1


def test_small_test_sets_have_no_favorite_class():
    origin = toy(20000, 10, 2000, 0)
    people = population.build(origin, partition.make("iid", origin, key=KEY, clients=5000), key=KEY)
    assert (people.test.size == 1).all()
    found = np.bincount(people.test.examples["y"][people.test.index], minlength=10) / 5000
    np.testing.assert_allclose(found, np.bincount(origin.train["y"]) / 20000, atol=0.02)


def test_test_examples_are_used_evenly():
    origin = toy(5000, 5, 1000, 0)
    people = population.build(origin, partition.make("iid", origin, key=KEY, clients=50), key=KEY)
    assert len(np.unique(people.test.index)) > 550  # 1000 draws with replacement would leave 368 unused


@fast
@given(examples=st.integers(4, 150), share=st.floats(0.01, 0.99), seed=st.integers(0, 50), data=st.data())
def test_holdout_divides_each_client(examples, share, seed, data):
    origin = toy(examples, 3, 7, seed)
    part = partition.make("iid", origin, key=KEY, clients=data.draw(st.integers(1, examples // 2)))
    people = population.build(origin, part, key=KEY, client_test=share)
    assert people.test.index is None and people.test.size.min() >= 1 and people.train.size.min() >= 1
    for i in range(people.clients):
        mine = part.index[part.offset[i]: part.offset[i] + part.size[i]]
        train, test = (s.examples["x"][rows(s, i), 0] for s in (people.train, people.test))
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.sort(mine))
        assert len(test) == np.clip(np.round(share * len(mine)), 1, len(mine) - 1)
        np.testing.assert_array_equal(people.counts[i],
                                      np.bincount(people.train.examples["y"][rows(people.train, i)], minlength=3))


def test_holdout_is_random_inside_a_client():
    origin, whole = toy(40, 2, 7, 0), partition.given(np.arange(40)[None], 40)
    held = [population.build(origin, whole, key=jax.random.key(k), client_test=0.5).test.examples["x"][:, 0] for k in range(2)]
    assert not np.array_equal(*held) and 10 < np.median(held[0]) < 30


def test_natural_clients_keep_their_own_test_examples():
    keys, test_keys = {"role": np.array([5, 5, 2, 2, 9, 9])}, {"role": np.array([9, 5, 5, 4, 2])}
    origin = toy(6, 2, 5, 0, keys, test_keys)
    people = population.build(origin, partition.make("natural", origin, key=KEY), key=KEY)
    assert [rows(people.test, i).tolist() for i in range(3)] == [[4], [1, 2], [0]]
    assert len(people.test.index) == people.test.size.sum()
    held = population.build(origin, partition.make("natural", origin, key=KEY), key=KEY, client_test=0.5)
    assert held.test.size.tolist() == [1, 1, 1] and held.test.examples["x"].max() < 10


def test_a_natural_client_without_test_examples_has_none():
    origin = toy(4, 2, 2, 0, {"role": np.array([0, 0, 1, 1])}, {"role": np.array([1, 1])})
    assert population.build(origin, partition.make("natural", origin, key=KEY), key=KEY).test.size.tolist() == [0, 2]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_holdout_refuses_a_share_that_is_none(share):
    origin = toy(6, 2, 5, 0)
    with pytest.raises(ValueError, match=f"client_test={share} is not valid"):
        population.build(origin, partition.make("iid", origin, key=KEY, clients=2), key=KEY, client_test=share)
    with pytest.raises(ValueError, match="needs two examples per client; client 0 has 1"):
        population.build(origin, partition.make("iid", origin, key=KEY, clients=6), key=KEY, client_test=0.5)


def test_the_manifest_says_what_is_there():
    origin = sources.load("digits")
    part = partition.make("dirichlet:0.3", origin, key=KEY, clients=20)
    people = population.build(origin, part, key=KEY)
    facts = json.loads(json.dumps(people.manifest))
    labels = [origin.train["y"][part.index[o: o + n]] for o, n in zip(part.offset, part.size)]
    shares = [np.bincount(y, minlength=10) / len(y) for y in labels]
    mean = np.bincount(origin.train["y"]) / 1442
    assert facts["entropy"] == pytest.approx(np.mean([-sum(p * np.log(p) for p in s if p) for s in shares]), rel=1e-5)
    assert facts["total_variation"] == pytest.approx(np.mean([abs(s - mean).sum() / 2 for s in shares]), rel=1e-5)
    assert (facts["source"], facts["partition"], facts["clients"], facts["examples"]) == ("digits", "dirichlet:0.3", 20, 1442)
    assert facts["size"]["min"] == min(map(len, labels)) and facts["size"]["max"] == max(map(len, labels))
    assert facts["size"]["median"] == np.median([len(y) for y in labels]) and facts["label_totals"] == np.bincount(origin.train["y"]).tolist()
    assert facts["test"] == people.test.size.sum() and facts["sha256"] == origin.manifest["sha256"]
    parts = (part.index, part.size, people.train.size, people.test.size, people.test.index)
    assert facts["sha256_partition"] == hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest()


def test_the_hash_follows_the_key():
    origin = sources.load("digits")
    made = lambda k, t: population.build(origin, partition.make("iid", origin, key=jax.random.key(k), clients=9),
                                         key=jax.random.key(t)).manifest["sha256_partition"]
    assert made(0, 0) == made(0, 0) and len({made(0, 0), made(1, 0), made(0, 1)}) == 3


def test_arrays_of_ones_own():
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 2, 2])
    lists = population.from_arrays(x, y, [[0, 2, 5], [1, 3]], x, y, key=KEY)
    assert lists.train.size.tolist() == [3, 2] and lists.counts.tolist() == [[2, 0, 1], [0, 2, 0]]
    np.testing.assert_array_equal(lists.train.examples["x"], x[[0, 2, 5, 1, 3]].astype(np.float32))
    padded = population.from_arrays(x, y, np.array([[0, 2, 5], [1, 3, -1]]), x, y, key=KEY)
    assert padded.manifest["sha256_partition"] == lists.manifest["sha256_partition"]
    numbers = population.from_arrays(x, y * 1.5, np.array([0, 1, 0, 1, 1, 0]), x, y * 1.5, key=KEY)
    assert numbers.train.size.tolist() == [3, 3] and numbers.counts.shape == (2, 0)
    assert numbers.train.examples["y"].dtype == np.float32 and numbers.train.examples["x"].dtype == np.float32
    with pytest.raises(ValueError, match="uses 1 examples more than once"):
        population.from_arrays(x, y, [[0, 1], [1]], x, y, key=KEY)


def test_generators_differ_by_key_and_purpose():
    draws = {draw.rng(jax.random.key(k), purpose).integers(2**62) for k in range(3) for purpose in ("", "a", "b")}
    assert len(draws) == 9 and draw.rng(KEY, "a").integers(2**62) == draw.rng(KEY, "a").integers(2**62)
