from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.analyticfl import merged
from problem import ROOT, SIZES, classifier

from fedjax_lab import registry, tree
from fedjax_lab.methods.aggregation.analyticfl import Solution, absolute, solved
from fedjax_lab.types import Stream

PROBLEM = classifier()
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(60, 5)), np.eye(3)[rng.integers(0, 3, 60)]


def told(rows, gamma=1.0):
    C = X[rows].T @ X[rows] + gamma * np.eye(5)
    return Solution(jnp.asarray(C), jnp.asarray(np.linalg.solve(C, X[rows].T @ Y[rows])), jnp.ones(()))


def joined(parts, **options):
    rule = absolute()
    sums = tree.zeros_like(told(parts[0]))
    for part in parts:
        sums = rule.add(sums, told(part), 1.0)
    return np.asarray(solved(rule.finish(sums), 1.0, **options)), sums


def test_it_is_ridge_before_and_least_squares_after_for_any_partition_in_any_order():
    with jax.enable_x64(True):
        for cut in ([30], [1, 2, 58], [7, 7, 20, 41], list(range(1, 60))):
            parts = np.split(rng.permutation(60), cut)
            found, sums = joined(parts, remove=True)
            np.testing.assert_allclose(found, np.linalg.lstsq(X, Y, rcond=None)[0], atol=1e-8)
            np.testing.assert_allclose(joined(parts[::-1], remove=True)[0], found, atol=1e-10)
            ridge = np.linalg.solve(X.T @ X + len(parts) * np.eye(5), X.T @ Y)
            np.testing.assert_allclose(joined(parts, remove=False)[0], ridge, atol=1e-10)
            assert sums.count == len(parts)


def test_the_closed_form_is_the_pairwise_law():
    with jax.enable_x64(True):
        parts = np.split(np.arange(60), [4, 9, 40])
        W, C = (np.asarray(x) for x in (told(parts[0]).W, told(parts[0]).C))
        for part in parts[1:]:
            W, C = merged(W, C, *(np.asarray(x) for x in (told(part).W, told(part).C)))
        np.testing.assert_allclose(joined(parts, remove=False)[0], W, atol=1e-12)


def test_ridges_stay_where_the_features_depend_on_each_other():
    with jax.enable_x64(True):
        few = [np.array([0, 1]), np.array([2])]
        np.testing.assert_array_equal(*(joined(few, remove=remove)[0] for remove in (True, False)))


def dealt(sizes):
    """The same examples at other clients."""
    people = PROBLEM.population
    size = np.array(sizes, np.int32)
    offset = (np.cumsum(size) - size).astype(np.int32)
    y = people.train.examples["y"]
    counts = np.stack([np.bincount(y[o : o + n], minlength=3) for o, n in zip(offset, size)]).astype(np.float32)
    train = Stream(people.train.examples, offset, size)
    return people._replace(train=train, test=train, counts=counts)


def trained(people, cohort, rounds, **options):
    method = registry.make("analyticfl", PROBLEM.task, head="2", **options)
    return bench.run(method, people, cohort=cohort, rounds=rounds, task=PROBLEM.task, seed=ROOT)


@pytest.mark.full
@pytest.mark.parametrize("batch_size", ["full", 4])
def test_one_round_with_everybody_is_the_best_linear_head(batch_size):
    state, record = trained(PROBLEM.population, bench.always(*range(7)), 2, batch_size=batch_size)
    Z = np.column_stack([PROBLEM.features(PROBLEM.start, PROBLEM.rows(i)).T for i in range(7)]).T
    best = np.linalg.lstsq(Z, np.eye(3)[PROBLEM.population.train.examples["y"]], rcond=None)[0]
    np.testing.assert_allclose(state.server.params["w2"], best, atol=1e-4)
    assert not np.any(state.server.params["b2"]) and state.server.sums.count == 7
    start = PROBLEM.tensors(PROBLEM.start)
    np.testing.assert_allclose(state.server.params["w1"], start["w1"], rtol=1e-6)
    assert np.unique(record.rounds["bytes_up"][0]).tolist() == [4 * (16 + 12 + 1)] and not record.rounds["bytes_up"][1].any()
    assert np.unique(record.rounds["bytes_down"]).tolist() == [4 * (12 + 3)]


@pytest.mark.full
def test_late_joins_and_clients_cut_in_two_change_nothing():
    at_once = trained(PROBLEM.population, bench.always(*range(7)), 1)[0].server.params
    later = trained(PROBLEM.population, 3, 6)[0].server
    in_two = trained(dealt([3, 17, 1, 8, 6, 6, 5, 10]), bench.always(*range(8)), 1)[0].server
    assert (later.sums.count, in_two.sums.count) == (7, 8)
    for other in (later, in_two):
        np.testing.assert_allclose(other.params["w2"], at_once["w2"], atol=2e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'analyticfl' needs a head with one matrix .* have 2"):
        registry.make("analyticfl", PROBLEM.task, head="w")
    with pytest.raises(ValueError, match="'analyticfl' needs a model with features and a head; task 'quadratic' has none"):
        bench.make("analyticfl")
    with pytest.raises(ValueError, match="'analyticfl' needs one class per example"):
        bench.start(registry.make("analyticfl", PROBLEM.task, head="2"), PROBLEM.population._replace(counts=np.zeros((len(SIZES), 0))), PROBLEM.task)
