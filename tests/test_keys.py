"""The keyed permutation and the derivation of keys: everything here is exact or a chi-square test at 1e-6."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_lab import keys

ROOT = jax.random.key(7)
WIDTH, DRAWS = 400, 48000  # of positions in one call, and of permutations: one shape each, so few compilations
permute = jax.jit(keys.shuffle)
permute_many = jax.jit(jax.vmap(keys.shuffle, (0, None, None)))


def draws(n, width):
    """The first `width` entries of many permutations of n, [DRAWS, width]."""
    seeds = jax.vmap(lambda t: jax.random.fold_in(ROOT, t))(jnp.arange(DRAWS))
    return np.asarray(permute_many(seeds, jnp.arange(5, dtype=jnp.int32), n))[:, :width]


def images(seed, n, positions):
    return np.asarray(permute(jax.random.key(seed), jnp.asarray(np.resize(positions, WIDTH), jnp.int32), n))[: len(positions)]


def passes(observed, probability):
    """Whether counts fit equal probabilities, at a level that one run in a million misses."""
    expected = np.sum(observed) * probability
    return stats.chi2.sf(np.sum((observed - expected) ** 2 / expected), observed.size - 1) > 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_every_small_permutation_is_a_bijection(n, seed):
    image = images(seed, n, np.arange(WIDTH))
    assert sorted(image[:n]) == list(range(n))
    assert image.min() >= 0 and image.max() < n  # at positions beyond n, too


@settings(max_examples=30, deadline=None)
@given(st.integers(301, 2**31 - 1), st.integers(0, 2**32 - 1))
@example(2**31 - 1, 0)
@example(2**31 - 2, 1)
@example(10**6, 2)
def test_large_permutations_do_not_collide(n, seed):
    sample = np.append(np.random.default_rng(seed).choice(n - 1, 300, replace=False), n - 1)
    image = images(seed, n, sample)
    assert len(set(image)) == 301 and image.min() >= 0 and image.max() < n


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_permutations_are_uniform(n):
    number = {p: i for i, p in enumerate(itertools.permutations(range(n)))}
    assert passes(np.bincount([number[row] for row in map(tuple, draws(n, n))], minlength=len(number)), 1 / len(number))


def test_cohorts_hold_each_client_and_each_pair_equally_often():
    n, cohort = 12, 4
    ids = draws(n, cohort)
    member = np.zeros((DRAWS, n), int)
    np.put_along_axis(member, ids, 1, 1)
    together = member.T @ member
    for seen, p in ((np.diag(together), cohort / n), (together[np.triu_indices(n, 1)], cohort * (cohort - 1) / (n * (n - 1)))):
        np.testing.assert_allclose(seen / DRAWS, p, atol=5 * math.sqrt(p * (1 - p) / DRAWS))
    assert all(passes(np.bincount(slot, minlength=n), 1 / n) for slot in ids.T)


def test_successive_epochs_and_positions_are_independent():
    image = draws(7, 2)
    assert passes(np.bincount(image[:-1, 0] * 7 + image[1:, 0], minlength=49), 1 / 49)  # first example of epochs t and t + 1
    pair = np.bincount(image[:, 0] * 7 + image[:, 1], minlength=49)
    assert (pair[::8] == 0).all() and passes(pair[np.arange(49) % 8 > 0], 1 / 42)


def test_nothing_but_n_and_the_position_enters():
    whole = images(7, 40, np.arange(WIDTH))[:40]
    np.testing.assert_array_equal(images(7, 40, [3, 17, 39]), whole[[3, 17, 39]])
    np.testing.assert_array_equal(permute(ROOT, jnp.array([[3], [17]], jnp.int32), 40), whole[[[3], [17]]])


@pytest.mark.parametrize("n", [0, 1])
def test_no_and_one_example(n):
    np.testing.assert_array_equal(images(0, n, [0, 1, 5, -1]), 0)


def test_positions_outside_stay_in_range():
    image = images(7, 10, [-5, -1, 10, 11, 2**31 - 1, -(2**31)])
    assert image.dtype == np.int32 and image.min() >= 0 and image.max() < 10


def test_keys_differ_by_purpose_round_and_client():
    rounds = [keys.for_round(ROOT, r) for r in range(3)]
    clients = [keys.for_client(key, c) for key in rounds for c in range(3)]
    named = [
        keys.purpose(key, name) for key in (ROOT, *rounds, *clients) for name in ("cohort", "serve0", "order", "up", "local")
    ]
    data = [tuple(map(int, jax.random.key_data(key))) for key in (ROOT, *rounds, *clients, *named)]
    assert len(set(data)) == len(data)


def test_keys_are_the_same_traced_or_not():
    traced = jax.jit(lambda r, c: keys.for_client(keys.for_round(ROOT, r), c))(jnp.int32(3), jnp.int32(4))
    assert jax.random.key_data(traced).tolist() == jax.random.key_data(keys.for_client(keys.for_round(ROOT, 3), 4)).tolist()
