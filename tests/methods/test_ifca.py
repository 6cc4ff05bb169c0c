from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.clusters import by_cluster

TASK = bench.TASK._replace(init=lambda key: {"x": jax.random.normal(key, (3,))})  # first models differ


@pytest.mark.full
def test_one_cluster_is_fedavg():
    np.testing.assert_allclose(bench.path("ifca", clusters=1), bench.path("fedavg", weighting="uniform"), rtol=1e-6)


def test_of_equal_models_everybody_takes_the_first():
    state, _ = bench.run(bench.make("ifca", clusters=3), rounds=1)
    np.testing.assert_array_equal(state.server["x"][1:], np.ones((2, 3)))
    assert (state.server["x"][0] != 1).all()


def two_groups():
    from fedjax_lab.types import Population, Stream

    centers = np.array([[5.0, 5, 5], [-5, -5, -5]])[[0, 1, 0, 1, 1, 0]] + 0.1 * np.random.default_rng(0).normal(size=(6, 3))
    stream = Stream({"a": np.ones((6, 3), np.float32), "o": centers.astype(np.float32)}, np.arange(6, dtype=np.int32), np.ones(6, np.int32))
    return Population(stream, stream, np.zeros((6, 0), np.float32)), centers


@pytest.mark.full
def test_two_groups_are_found_and_each_model_is_the_mean_of_its_members():
    people, centers = two_groups()
    task = TASK._replace(init=lambda key: {"x": jnp.sign(jax.random.normal(key))[None] * jnp.ones(3)})
    method = bench.make("ifca", task, clusters=4, lr=0.5, local_steps=8)
    state, _ = bench.run(method, people, rounds=4, cohort=bench.always(*range(6)), task=task)
    models = np.asarray(state.server["x"])
    groups = [np.array([0, 2, 5]), np.array([1, 3, 4])]
    for group in groups:
        assert np.abs(models - centers[group].mean(0)).max(1).min() < 0.05
    own = np.stack([method.personal(None, state.server, (), bench.client(people, i))["x"] for i in range(6)])
    np.testing.assert_allclose(own, np.stack([centers[groups[0 if i in groups[0] else 1]].mean(0) for i in range(6)]), atol=0.05)


def test_all_models_go_down_and_one_comes_up():
    _, record = bench.run(bench.make("ifca", clusters=4), rounds=1)
    np.testing.assert_array_equal(record.rounds["bytes_down"][0], 4 * 12)
    np.testing.assert_array_equal(record.rounds["bytes_up"][0], 12)


def test_means_apart():
    rule, rng = by_cluster(), np.random.default_rng(1)
    values, owner, weight = rng.normal(size=(5, 2)).astype(np.float32), np.array([0, 2, 2, 0, 2]), np.array([1, 2, 3, 4, 0.0])
    weights = (weight[:, None] * (owner[:, None] == np.arange(3))).astype(np.float32)
    acc = rule.zero({"w": jnp.zeros(2)}, jnp.zeros(3))
    for v, w in zip(values, weights, strict=True):
        acc = rule.add(acc, {"w": jnp.where(w.sum() == 0, jnp.nan, v)}, w)
    means, heard = rule.finish(rule.merge(acc, rule.zero({"w": jnp.zeros(2)}, jnp.zeros(3))))
    np.testing.assert_allclose(heard, [5, 0, 5])
    np.testing.assert_allclose(means["w"], [(values[0] + 4 * values[3]) / 5, [0, 0], (2 * values[1] + 3 * values[2]) / 5], rtol=1e-6)


@pytest.mark.full
def test_a_shared_trunk_is_one():
    task = bench.split()
    state, _ = bench.run(bench.make("ifca", task, clusters=3, shared="body"), rounds=3, task=task)
    body, head = np.asarray(state.server["body"]), np.asarray(state.server["head"])
    np.testing.assert_allclose(body[0], body[1], rtol=1e-6)
    np.testing.assert_allclose(body[0], body[2], rtol=1e-6)
    assert np.unique(head, axis=0).shape[0] == 3
