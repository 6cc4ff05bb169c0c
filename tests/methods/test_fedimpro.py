from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem
import pytest

from fedjax_lab import registry
from fedjax_lab.parts import split
from fedjax_lab.parts.cohorts.uniform import uniform

CLASSIFIER = problem.classifier()
OPTIONS = {"lr": 0.2, "batch_size": 4, "epochs": 2}


@functools.cache
def end(name, rounds=3, cohort=4, **options):
    people = CLASSIFIER.population
    method = registry.make(name, CLASSIFIER.task, **{**OPTIONS, **options})
    return bench.run(method, people, rounds=rounds, cohort=uniform(people.clients, cohort), task=CLASSIFIER.task, seed=1)


def flat(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.server.params if hasattr(state.server, "params") else state.server)])


@pytest.mark.full
def test_without_weight_it_is_fedavg():
    expected = flat(end("fedavg")[0])
    np.testing.assert_allclose(flat(end("fedimpro", ramp=1e9)[0]), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flat(end("fedimpro", ramp=1.0, rounds=1)[0]), flat(end("fedavg", rounds=1)[0]), rtol=1e-5, atol=1e-6)
    assert np.abs(flat(end("fedimpro", ramp=1.0)[0]) - expected).max() > 1e-3


def test_drawn_features_move_the_head_alone():
    task = CLASSIFIER.task
    params, z = task.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, problem.HIDDEN))
    batch = {"y": jnp.arange(6) % 3, "mask": jnp.ones(6, bool)}
    grad = jax.grad(lambda p: jnp.mean(task.metrics(task.head(p, z), batch)["loss"]))(params)
    assert not np.asarray(grad["w1"]).any() and not np.asarray(grad["b1"]).any() and np.asarray(grad["w2"]).any()


def test_statistics_by_class_are_numpys():
    rng = np.random.default_rng(0)
    z, y, mask = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 4, 12), np.arange(12) < 10
    y[:10][y[:10] == 3] = 2
    y[0] = 3  # a class of one
    number, mean, deviation = split.by_class(jnp.asarray(np.where(mask[:, None], z, np.nan)), jnp.asarray(y), jnp.asarray(mask), 5)
    for c in range(5):
        own = z[mask & (y == c)]
        assert number[c] == len(own)
        np.testing.assert_allclose(mean[c], own.mean(0) if len(own) else np.zeros(3), atol=1e-6)
        np.testing.assert_allclose(deviation[c], own.std(0, ddof=1) if len(own) > 1 else np.zeros(3), atol=1e-6)


@pytest.mark.full
def test_pooled_statistics_are_those_of_the_union():
    """Clients whose weights stand still and whose batches hold all they have, one of them a single example."""
    state, _ = end("fedimpro", rounds=1, cohort=7, lr=1e-7, batch_size="full", epochs=1, statistics="pooled", sigma_max=100.0)
    z = np.asarray(CLASSIFIER.task.features(state.server.params, CLASSIFIER.population.train.examples))
    for c in range(problem.CLASSES):
        own = z[CLASSIFIER.population.train.examples["y"] == c]
        np.testing.assert_allclose(state.server.features.mean[c], own.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.server.features.deviation[c], own.std(0), rtol=1e-4, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("statistics", ["plain", "pooled"])
def test_classes_that_nobody_has_stay(statistics):
    people, single = CLASSIFIER.population, 2  # a client with one example
    method = registry.make("fedimpro", CLASSIFIER.task, lr=0.0, statistics=statistics)
    before = bench.start(method, people, CLASSIFIER.task).server.features
    after = bench.run(method, people, rounds=1, cohort=bench.always(single), task=CLASSIFIER.task)[0].server.features
    has = people.counts[single] > 0
    np.testing.assert_array_equal(np.asarray(after.mean)[~has], np.asarray(before.mean)[~has])
    np.testing.assert_allclose(np.asarray(after.deviation)[~has], 0.1, rtol=1e-6)
    assert has.sum() == 1 and np.abs(np.asarray(after.mean)[has] - np.asarray(before.mean)[has]).min() > 0.01


@pytest.mark.full
def test_deviations_are_capped_and_noise_is_added():
    state, _ = end("fedimpro", sigma_max=0.05)
    assert np.asarray(state.server.features.deviation).max() <= 0.05 + 1e-7
    loud, _ = end("fedimpro", sigma_max=0.05, noise=0.5)
    assert np.abs(np.asarray(loud.server.features.mean) - np.asarray(state.server.features.mean)).max() > 0.1


def test_what_it_needs():
    with pytest.raises(ValueError, match="'fedimpro' needs a model with features and a head"):
        bench.make("fedimpro")
    with pytest.raises(ValueError, match="'fedimpro' needs one class per example"):
        people = CLASSIFIER.population._replace(counts=np.zeros((7, 0), np.float32))
        bench.start(bench.make("fedimpro", CLASSIFIER.task), people, CLASSIFIER.task)
