from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem
import pytest

from fedjax_lab import registry
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts import split
from fedjax_lab.parts.cohorts.uniform import uniform

CLASSIFIER = problem.classifier()
OPTIONS = {"lr": 0.2, "batch_size": 4, "epochs": 2}


def end(name, rounds=3, **options):
    people = CLASSIFIER.population
    method = registry.make(name, CLASSIFIER.task, **{**OPTIONS, **options})
    sim = sync.build(CLASSIFIER.task, method, people, uniform(people.clients, 4), mesh=mesh.make(1), length=rounds)
    state = sim.init(sim.world, jax.random.key(1))
    return sim.segment(sim.world, state, jnp.int32(0), jnp.int32(rounds))


def flat(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.server.params if hasattr(state.server, "params") else state.server)])


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


def test_pooled_statistics_are_those_of_the_union():
    """Clients whose weights stand still and whose batches hold all they have: the pooled deviation is that of all their features."""
    people = CLASSIFIER.population
    state, _ = end("fedimpro", rounds=1, lr=1e-7, batch_size="full", epochs=1, statistics="pooled", sigma_max=100.0)
    x = CLASSIFIER.task.init(jax.random.key(0))
    del x
    method = registry.make("fedimpro", CLASSIFIER.task, lr=1e-7, batch_size="full", epochs=1, statistics="pooled", sigma_max=100.0)
    sim = sync.build(CLASSIFIER.task, method, people, uniform(people.clients, people.clients), mesh=mesh.make(1), length=1)
    state = sim.init(sim.world, jax.random.key(1))
    params = jax.device_get(state.server.params)
    state, _ = sim.segment(sim.world, state, jnp.int32(0), jnp.int32(1))
    z = np.asarray(CLASSIFIER.task.features(params, {k: jnp.asarray(v) for k, v in people.train.examples.items()}))
    y = np.asarray(people.train.examples["y"])
    owner = np.repeat(np.arange(people.clients), people.train.size)
    for c in range(problem.CLASSES):
        counts = np.array([((owner == i) & (y == c)).sum() for i in range(people.clients)])
        if (counts[counts > 0] > 1).all():
            own = z[y == c]
            n = [z[(owner == i) & (y == c)] for i in range(people.clients) if counts[i]]
            second = sum(len(a) * (a.var(0, ddof=1) + a.mean(0) ** 2) for a in n) / len(own)
            np.testing.assert_allclose(state.server.features.mean[c], own.mean(0), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(state.server.features.deviation[c], np.sqrt(second - own.mean(0) ** 2), rtol=1e-2, atol=1e-3)


def test_deviations_are_capped_and_noise_is_added():
    state, _ = end("fedimpro", sigma_max=0.05)
    assert np.asarray(state.server.features.deviation).max() <= 0.05 + 1e-7
    loud, _ = end("fedimpro", sigma_max=0.05, noise=0.5)
    assert np.abs(np.asarray(loud.server.features.mean) - np.asarray(state.server.features.mean)).max() > 0.1


def test_what_it_needs():
    with pytest.raises(ValueError, match="'fedimpro' needs a model with features and a head"):
        bench.make("fedimpro")
    with pytest.raises(ValueError, match="'fedimpro' needs one class per example"):
        bench.start(bench.make("fedimpro", __import__("test_moon").split()), task=__import__("test_moon").split())
