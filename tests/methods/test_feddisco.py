from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.aggregators.disco import disco, weights
from fedjax_lab.types import Cohort

NIID2 = np.zeros((6, 10))
for k in range(5):
    NIID2[k, 2 * k : 2 * k + 2] = 50
NIID2[5] = 10
EQUAL = np.full(6, 100.0)


def of(counts, p, a=0.5, b=0.1, **more):
    return np.asarray(weights(jnp.asarray(counts, jnp.float32), jnp.asarray(p, jnp.float32), a, b, **more))


def test_the_papers_second_partition():
    """Five clients with two classes each and a uniform one: 1 / 6.6 and 1.6 / 6.6."""
    np.testing.assert_allclose(of(NIID2, EQUAL), [1 / 6.6] * 5 + [1.6 / 6.6], rtol=1e-5)


def test_without_a_and_b_the_weights_are_the_methods():
    p = np.array([1, 2, 3, 4, 0, 6.0])
    np.testing.assert_allclose(of(NIID2, p, 0.0, 0.0), p / p.sum(), rtol=1e-6)


def test_b_is_irrelevant_where_all_are_alike():
    alike = np.roll(np.eye(6, 6) * 100, 1, 0)
    np.testing.assert_allclose(of(alike, EQUAL, 0.5, 0.1), of(alike, EQUAL, 0.5, 0.9), rtol=1e-6)
    np.testing.assert_allclose(of(alike, EQUAL), 1 / 6, rtol=1e-6)


def test_only_the_rounds_clients_count():
    heard = np.array([100, 100, 0, 0, 0, 100.0])
    two = of(NIID2[[0, 1, 5]], EQUAL[:3])
    np.testing.assert_allclose(of(NIID2, heard)[[0, 1, 5]], two, rtol=1e-6)
    np.testing.assert_array_equal(of(NIID2, heard)[2:5], 0)


def test_where_nobody_is_left_the_weights_are_the_methods():
    np.testing.assert_allclose(of(NIID2[:5], EQUAL[:5], a=5.0, b=0.0), 1 / 5, rtol=1e-6)
    assert not of(NIID2, np.zeros(6)).any()


@pytest.mark.parametrize("metric, far", [("l2", np.sqrt(2 * 0.4**2 + 8 * 0.1**2)), ("cosine", 1 - 1 / np.sqrt(5))])
def test_other_distances(metric, far):
    raw = np.array([1 / 6 - 0.3 * far + 0.5] * 5 + [1 / 6 + 0.5])
    np.testing.assert_allclose(of(NIID2, EQUAL, 0.3, 0.5, metric=metric), raw / raw.sum(), rtol=1e-5)


def test_a_target_of_ones_own():
    near_first = of(NIID2, EQUAL, target=(5.0, 5.0, *[0.1] * 8))
    assert near_first.argmax() == 0
    with pytest.raises(ValueError, match="10 classes and 2 entries"):
        of(NIID2, EQUAL, target=(1.0, 2.0))


def test_the_rule_is_the_weighted_mean_and_poison_does_not_count():
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(6, 4)).astype(np.float32)
    p = np.array([100, 100, 0, 100, 100, 100.0])
    poisoned = stack.copy()
    poisoned[2] = np.nan
    size = jnp.asarray(p, jnp.int32)
    cohort = Cohort(jnp.arange(6), jnp.asarray(p > 0), size, size, 6, jnp.int32(0), jnp.asarray(NIID2, jnp.float32))
    found = disco().combine({"w": jnp.asarray(poisoned)}, jnp.asarray(p, jnp.float32), cohort)["w"]
    np.testing.assert_allclose(found, np.einsum("k,kd->d", of(NIID2, p), stack), rtol=1e-5)


def test_clients_without_labels_are_refused():
    with pytest.raises(ValueError, match="'feddisco' needs examples with labels; task 'quadratic' has none"):
        bench.start(bench.make("feddisco"))


@pytest.mark.full
def test_in_the_engine():
    people = bench.population()
    counts = np.random.default_rng(2).integers(0, 9, (6, 3)).astype(np.float32)
    people = people._replace(counts=counts)
    base = bench.path("fedavg", people)
    np.testing.assert_allclose(bench.path("feddisco", people, a=0.0, b=0.0), base, rtol=1e-5)
    cohort = [0, 2, 4]
    w = of(counts[cohort], np.asarray(people.train.size)[cohort], 0.8, 0.05)
    method = bench.make("feddisco", a=0.8, b=0.05)
    x = {"x": np.ones(3, np.float32)}
    key = jax.random.key(0)
    changes = [method.local(key, {"model": x}, (), bench.client(people, i, s)).upload["model"]["x"] for i, s in zip(cohort, (4, 3, 5), strict=True)]
    state, _ = bench.run(method, people, rounds=1)
    np.testing.assert_allclose(state.server["x"], 1 + np.einsum("k,kd->d", w, np.stack(changes)), rtol=1e-5)
