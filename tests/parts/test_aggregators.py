from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import registry
from fedjax_lab.parts.aggregators.averages import vote
from fedjax_lab.parts.aggregators.coordinate import median, trimmed_mean

RNG = np.random.default_rng(5)
STACK = {"w": RNG.normal(size=(7, 4, 3)).astype(np.float32), "b": RNG.normal(size=(7, 2)).astype(np.float32)}
HEARD = np.array([1, 0, 1, 1, 1, 0, 1], np.float32)


def tree_of(f, stack=STACK):
    return {k: f(v) for k, v in stack.items()}


def same(got, expected, **tolerance):
    for k, v in expected.items():
        np.testing.assert_allclose(got[k], v, **{"rtol": 1e-6, "atol": 1e-7, **tolerance})


def rotten(stack=STACK):
    """What is not heard may hold anything."""
    return tree_of(lambda v: np.where(HEARD.reshape(-1, *[1] * (v.ndim - 1)) > 0, v, np.nan))


@pytest.mark.parametrize("heard", [HEARD, np.array([1, 1, 1, 0, 0, 0, 1], np.float32), np.array([0, 0, 0, 0, 0, 1, 0], np.float32)])
def test_median_is_numpys_over_those_heard(heard):
    same(median().combine(STACK, 3 * heard, None), tree_of(lambda v: np.median(v[heard > 0], 0)))


@pytest.mark.parametrize("rule", [median(), trimmed_mean(0.2), trimmed_mean(f=1)], ids=["median", "beta", "f"])
def test_the_unheard_and_the_order_change_nothing(rule):
    weight = HEARD * np.arange(1, 8)
    expected = rule.combine(STACK, weight, None)
    same(rule.combine(rotten(), weight, None), expected)
    order = RNG.permutation(7)
    same(rule.combine(tree_of(lambda v: v[order]), weight[order], None), expected)
    same(rule.combine(STACK, 0 * HEARD, None), tree_of(lambda v: np.zeros(v.shape[1:])))


def test_weights_are_honored_as_copies():
    times = np.array([3, 0, 1, 2, 5, 1, 2])
    copies = tree_of(lambda v: np.repeat(v, times, 0))
    same(median().combine(STACK, times.astype(np.float32), None), tree_of(lambda v: np.median(v, 0), copies))
    heard = times > 0
    same(median(weights="equal").combine(STACK, times.astype(np.float32), None), tree_of(lambda v: np.median(v[heard], 0)))


def test_weights_may_differ_by_entry():
    per_entry = {"w": np.broadcast_to(np.array([1.0, 1, 0, 0], np.float32)[:, None] * HEARD[:, None, None], (7, 4, 3)), "b": HEARD}
    got = median().combine(STACK, per_entry, None)
    expected = np.median(STACK["w"][HEARD > 0], 0)
    expected[2:] = 0
    same(got, {"w": expected, "b": np.median(STACK["b"][HEARD > 0], 0)})


@pytest.mark.parametrize("b", [0, 1, 2])
def test_trimmed_mean_drops_b_at_either_end(b):
    expected = tree_of(lambda v: np.sort(v[HEARD > 0], 0)[b : 5 - b].mean(0))
    same(trimmed_mean(b / 5).combine(STACK, HEARD, None), expected)
    if b:
        same(trimmed_mean(0.4, f=b).combine(STACK, HEARD, None), expected)
    else:
        same(expected, tree_of(lambda v: v[HEARD > 0].mean(0)))
    if b == 2:
        same(expected, median().combine(STACK, HEARD, None))


def test_trimmed_mean_honors_the_weights_of_those_that_stay():
    v, w = np.array([[-9.0], [1.0], [2.0], [4.0], [99.0]], np.float32), np.array([1, 1, 2, 5, 7], np.float32)
    np.testing.assert_allclose(trimmed_mean(f=1).combine({"x": v}, w, None)["x"], (1 + 4 + 20) / 8)
    np.testing.assert_allclose(trimmed_mean(f=1, weights="equal").combine({"x": v}, w, None)["x"], 7 / 3)


@pytest.mark.parametrize("bad", [1e30, np.inf, -np.inf, np.nan])
def test_a_minority_cannot_leave_the_honest_range(bad):
    attacked = tree_of(lambda v: np.concatenate([v[:5], np.full_like(v[:2], bad)]))
    for rule in (median(), trimmed_mean(f=2), trimmed_mean(0.25)):
        for k, got in rule.combine(attacked, np.ones(7, np.float32), None).items():
            assert (got >= STACK[k][:5].min(0) - 1e-6).all() and (got <= STACK[k][:5].max(0) + 1e-6).all()


def run(rule, stack, weights):
    acc = rule.zero(jax.tree.map(lambda v: v[0], stack), jnp.float32(0))
    for i, w in enumerate(weights):
        acc = rule.add(acc, jax.tree.map(lambda v, i=i: v[i], stack), jnp.float32(w))
    return rule.finish(acc)


def test_vote_is_the_sign_of_the_weighted_majority():
    got = run(vote(), STACK, HEARD)
    same(got, tree_of(lambda v: np.sign(np.sign(v[HEARD > 0]).sum(0))))
    same(run(vote(), tree_of(lambda v: v * 10.0 ** np.arange(7).reshape(-1, *[1] * (v.ndim - 1))), HEARD), got)
    assert run(vote(), {"x": np.array([1, -1, -1], np.float32)}, [3, 1, 1])["x"] == 1
    statistics = {"params": STACK["b"], "stats": np.array([[1.0], [3.0]] + [[0.0]] * 5, np.float32)}
    assert run(vote(), statistics, [1, 1, 0, 0, 0, 0, 0])["stats"] == 2


def test_a_minority_of_voters_changes_nothing():
    votes = np.sign(np.array([3, 1, 2, 5, 4], np.float32)) * np.ones((5, 1), np.float32)
    for flipped in itertools.combinations(range(5), 2):
        signs = votes.T.copy()
        signs[:, list(flipped)] *= -1
        assert run(vote(), {"x": signs.T[:, 0]}, np.ones(5))["x"] == 1


def test_aggregators_are_registered():
    assert {"mean", "total", "median", "trimmed-mean", "vote"} <= set(registry.catalog("aggregator"))
