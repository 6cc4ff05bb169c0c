from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import SIZES, classifier

from fedjax_lab import models, registry
from fedjax_lab.methods.representation.ggeur import root
from fedjax_lab.parts.aggregators import moments
from fedjax_lab.parts.augmented import Plan, augmented

PROBLEM = classifier()
PEOPLE = PROBLEM.population
rng = np.random.default_rng(0)
Z, Y = rng.normal(size=(90, 4)).astype(np.float32) + 3, rng.integers(0, 3, 90)


@pytest.mark.full
def test_pooled_moments_are_those_of_all_examples_for_any_partition():
    for parts in ([np.arange(90)], np.array_split(rng.permutation(90), 7), np.split(np.argsort(Y), [1, 40, 41])):
        rule, wide = moments.pooled(), max(map(len, parts))
        told = []
        for part in parts:
            rows = np.resize(part, wide)
            told.append(moments.of(jnp.asarray(Z[rows]), jnp.asarray(Y[rows]), jnp.arange(wide) < len(part), 3))
        acc = rule.zero(told[0], 1.0)
        for one in told:
            acc = rule.add(acc, one, 1.0)
        unheard = jax.tree.map(lambda x: x * jnp.nan, told[0])
        found = rule.finish(rule.merge(rule.add(acc, unheard, 0.0), rule.zero(told[0], 1.0)))
        for c in range(3):
            mine = Z[Y == c].astype(np.float64)
            assert found.number[c] == len(mine)
            np.testing.assert_allclose(found.mean[c], mine.mean(0), atol=1e-5)
            np.testing.assert_allclose(found.cov[c], np.cov(mine.T, bias=True), atol=1e-5)


def views(client, plan, roots=None, means=None, numbers=None):
    nothing = jnp.zeros((7, 3, 5)), jnp.zeros((7, 3))
    known = nothing if means is None else (means, numbers)
    return augmented(bench.client(PEOPLE, client).train, lambda batch: batch["x"], jax.random.key(3), plan,
                     jnp.zeros((3, 5, 5)) if roots is None else roots, *known, jnp.int32(client))


def whole(view):
    size = int(view.size)
    found = jax.jit(view.take)(jnp.arange(size), jnp.ones(size, bool))
    return np.asarray(found["z"]), np.asarray(found["y"])


def test_noise_has_the_pooled_covariance():
    cov = np.diag([4.0, 1.0, 0.25, 0.0, 2.0]).astype(np.float32)
    cov[0, 1] = cov[1, 0] = -1.5
    roots = jnp.broadcast_to(root(jnp.asarray(cov), "sqrt", "none"), (3, 5, 5))
    own = PEOPLE.train.examples["x"][PROBLEM.rows(2)]
    z, y = whole(views(2, Plan(100_001, 1, 0), roots))
    assert len(z) == 100_001 and len(set(y)) == 1
    np.testing.assert_array_equal(z[:1], own)
    np.testing.assert_allclose(np.cov((z[1:] - own).T), cov, atol=0.05)
    np.testing.assert_allclose(root(jnp.asarray(cov), "eigenvalue", "none"), cov, atol=1e-5)
    lam = np.linalg.eigvalsh(cov)
    np.testing.assert_allclose(np.linalg.eigvalsh(root(jnp.asarray(cov), "eigenvalue", "largest")), lam * np.linspace(5, 1, 10)[:5][::-1], atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("target", [6, 1, 40])
def test_classes_are_topped_up_around_own_examples_in_turn(target):
    for client in range(7):
        rows = PROBLEM.rows(client)
        x, labels = (PEOPLE.train.examples[name][rows] for name in "xy")
        z, y = whole(views(client, Plan(target, 1, 0)))
        np.testing.assert_array_equal(z[: len(x)], x)  # the data are unchanged where nothing is missing
        number = np.bincount(labels, minlength=3)
        np.testing.assert_array_equal(np.bincount(y, minlength=3), np.where(number > 0, np.maximum(number, target), 0))
        for c in np.flatnonzero(number):
            mine, new = x[labels == c], z[len(x):][y[len(x):] == c]
            np.testing.assert_array_equal(new, mine[np.arange(len(new)) % len(mine)])


@pytest.mark.full
def test_other_domains_means_are_the_centers_of_what_is_drawn():
    numbers = np.stack([np.bincount(PEOPLE.train.examples["y"][PROBLEM.rows(i)], minlength=3) for i in range(7)])
    means = jnp.arange(7.0)[:, None, None] * 100 + jnp.arange(3.0)[:, None] * 10 + jnp.zeros((7, 3, 5)) + 1000
    plan = Plan(30, 4, 2)
    for client in (2, 5):
        z, y = whole(views(client, plan, means=means, numbers=jnp.asarray(numbers)))
        there = np.delete(numbers > 0, client, 0)
        candidates = 4 * (numbers[client] > 0) + 2 * there.sum(0)
        np.testing.assert_array_equal(np.bincount(y, minlength=3), np.minimum(np.maximum(numbers[client], 30), numbers[client] + candidates))
        far = z[z[:, 0] > 500]
        whose = ((far[:, 0] - 1000) // 100).astype(int)
        assert client not in whose and set(np.bincount(whose)[np.unique(whose)]) <= {2, 4, 6}
        np.testing.assert_array_equal((far[:, 0] - 1000) % 100 // 10, y[z[:, 0] > 500])


@pytest.mark.full
def test_with_nothing_to_fill_it_is_fedavg():
    example = {"x": np.zeros((1, 5), np.float32), "y": np.zeros(1, np.int32), "mask": np.ones(1, bool)}
    task = models.classification("linear", models.LogisticRegression(3), example)
    options = {"batch_size": "full", "epochs": 3, "lr": 0.1}
    ends = [bench.run(registry.make(name, task, **options, **more), PEOPLE, task=task, rounds=3)[0].server
            for name, more in (("ggeur", {"target": 1}), ("fedavg", {}))]
    for a, b in zip(*map(jax.tree.leaves, (ends[0].params, ends[1])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.full
def test_what_is_sent_once_is_counted_once():
    method = registry.make("ggeur", PROBLEM.task, head="2", target=5, batch_size="full")
    _, record = bench.run(method, PEOPLE, cohort=3, rounds=2, task=PROBLEM.task)
    classes = np.array([len(set(PEOPLE.train.examples["y"][PROBLEM.rows(i)])) for i in range(7)])
    per_class = 32 * (1 + 4 + 16)
    np.testing.assert_array_equal(record.rounds["all_bytes_up"], [-(-(3 + classes * per_class) // 8), 0 * classes])
    assert np.unique(record.rounds["all_bytes_down"][0]).tolist() == [4 * 3 * 16] and not record.rounds["all_bytes_down"][1].any()
    assert np.unique(record.rounds["bytes_up"]).tolist() == [4 * 15]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'ggeur' needs one class per example"):
        bench.start(registry.make("ggeur", PROBLEM.task, head="2"), PEOPLE._replace(counts=np.zeros((len(SIZES), 0))), PROBLEM.task)
