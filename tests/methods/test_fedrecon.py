"""Federated Reconnaissance: the prototypes are the class means of everything seen, however it was split."""
from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier
from sklearn.neighbors import NearestCentroid

from fedjax_lab import registry
from fedjax_lab.parts.prototypes import Episodes, Prototypes
from fedjax_lab.types import Draw, Participation

PROBLEM = classifier()
PEOPLE = PROBLEM.population._replace(public={})
TRAIN = PEOPLE.train.examples
OWNER = np.repeat(np.arange(PROBLEM.clients), PROBLEM.size)


def make(task=PROBLEM.task, **options):
    return registry.make("fedrecon", task, **{"episodes": 0, **options})


def seats(*rounds):
    """Cohorts of these clients, round by round."""
    width = max(map(len, rounds))
    ids = jnp.array([[*ids, *[0] * (width - len(ids))] for ids in rounds], jnp.int32)
    there = jnp.array([[i < len(ids) for i in range(width)] for ids in rounds])

    def draw(key, state, clock):
        return Draw(state, ids[clock], there[clock], there[clock], jnp.full(width, 99, jnp.int32))

    return Participation(width, lambda key, census: (), draw)


EVERYBODY = tuple(range(PROBLEM.clients))
LACKING = int(np.flatnonzero((PEOPLE.counts > 0).sum(1) < 3)[-1])  # this client lacks a class
OTHERS = tuple(np.delete(EVERYBODY, LACKING))
MISSIONS = OTHERS[:3], (LACKING,), OTHERS[2:5], (OTHERS[5], OTHERS[1])  # some of them twice


@functools.cache
def after(*rounds, **options):
    """[(model, record)] after each of the cohorts of these clients."""
    seen = bench.history(make(**options), PEOPLE, task=PROBLEM.task, cohort=seats(*rounds), segments=(1,) * len(rounds))
    return [(state.server, record) for state, record in seen]


def means(model, clients):
    rows = np.isin(OWNER, clients)
    z = np.asarray(PROBLEM.task.features(model.encoder, {k: v[rows] for k, v in TRAIN.items()}))
    return np.stack([z[TRAIN["y"][rows] == c].mean(0) for c in range(3)])


@pytest.mark.full
def test_prototypes_are_the_means_of_all_whatever_the_split_and_the_order():
    for missions in ((EVERYBODY,), MISSIONS):
        model, _ = after(*missions)[-1]
        np.testing.assert_allclose(model.classes.mean, means(model, EVERYBODY), atol=1e-5)
        np.testing.assert_array_equal(model.classes.number, PEOPLE.counts.sum(0))


def test_it_is_the_nearest_centroid():
    model, _ = after(EVERYBODY)[-1]
    z = np.asarray(PROBLEM.task.features(model.encoder, TRAIN))
    said = make().task.apply(model, {**TRAIN, "mask": np.ones(len(z), bool)}).argmax(1)
    np.testing.assert_array_equal(said, NearestCentroid().fit(z, TRAIN["y"]).predict(z))


def test_merging_is_commutative_and_associative():
    rng = np.random.default_rng(0)
    several = [(rng.normal(size=(4, 3)), rng.integers(0, 5, 4).astype(float)) for _ in range(3)]
    start = Prototypes(jnp.zeros((4, 3)), jnp.zeros(4))
    one = start.merged(*several[0]).merged(*several[1]).merged(*several[2])
    other = start.merged(*several[2]).merged(*start.merged(*several[1]).merged(*several[0]))
    np.testing.assert_array_equal(one.number, other.number)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-6)


def test_a_class_that_nobody_brings_keeps_its_bits_and_only_new_classes_are_sent():
    (before, _), (model, record), *_ = after(*MISSIONS)
    lacks = PEOPLE.counts[LACKING] == 0
    np.testing.assert_array_equal(before.classes.mean[lacks], model.classes.mean[lacks])
    assert (before.classes.mean[~lacks] != model.classes.mean[~lacks]).any(1).all()
    up, down = (record.rounds[name][0, 0] for name in ("bytes_up", "bytes_down"))
    assert up == -(-(3 + (~lacks).sum() * 5 * 32) // 8) and down == 3 * 5 * 4  # a bit a class; no encoder
    again = after(*MISSIONS)[2][1].rounds
    assert again["bytes_up"][0][again["ids"][0] == OTHERS[2]] == 1  # who has been on its mission has nothing to tell


def test_a_class_that_is_not_seen_is_never_said():
    one = jnp.ones(3)
    seen = Prototypes(jnp.array([[9.0, 9.0, 9.0], [0.0, 0.0, 0.0]]), jnp.array([4.0, 0.0]))
    assert seen.nearness(0 * one[None]).argmax() == 0
    assert np.isfinite(Prototypes(jnp.zeros((2, 3)), jnp.zeros(2)).nearness(one[None])).all()


def test_an_episode_with_fewer_classes_and_examples_than_asked_for():
    labeled = {"x": jnp.arange(12.0).reshape(6, 2), "y": jnp.array([0, 0, 0, 4, 4, 4])}

    def losses(key):
        return [Episodes(*sizes).loss(key, lambda b: 0.1 * b["x"], labeled, 5) for sizes in ((2, 1, 2), (5, 1, 90), (2, 3, 0))]

    few, many, none = jax.jit(losses)(jax.random.key(0))
    np.testing.assert_allclose(few, many, rtol=1e-6)
    assert few > 0 and none == 0


def test_what_it_needs():
    with pytest.raises(ValueError, match="'fedrecon' needs at least 2 public examples, there are 0"):
        bench.start(make(episodes=1), PEOPLE, PROBLEM.task)
    with pytest.raises(ValueError, match="'fedrecon' needs a model with features and a head; task 'tiny' has none"):
        make(PROBLEM.task._replace(head=None))
