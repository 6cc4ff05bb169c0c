"""Frequency oracles against their laws, and heavy hitters under local differential privacy."""
from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.reports.frequency import frequency
from fedjax_lab.parts.reports.taps import Estimate, f1, most, ncr, taps

NAMES = ("krr", "oue", "olh")
D, WIDTH, USERS = 6, 9, 40_000


@functools.cache
def asked(name, eps=1.0, users=USERS):
    oracle = frequency(name, eps, WIDTH)
    values = jnp.asarray(np.repeat(np.arange(D), [users // 2, users // 4, users - users // 2 - users // 4 - 30, 30, 0, 0]))
    reports = jax.jit(jax.vmap(lambda u, v: oracle.report(jax.random.fold_in(jax.random.key(3), u), v, jnp.int32(D))))(jnp.arange(users), values)
    return oracle, np.asarray(values), reports


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_unbiased_and_vary_as_declared(name):
    oracle, values, reports = asked(name)
    parts = 200
    order = np.random.default_rng(0).permutation(USERS)
    cut = jax.tree.map(lambda r: np.asarray(r)[order].reshape(parts, -1, *r.shape[1:]), reports)
    counts, deviation = jax.vmap(lambda r: oracle.counts(r, jnp.ones(USERS // parts, bool), jnp.int32(D)))(cut)
    true = np.bincount(values, minlength=WIDTH) / parts
    assert (np.abs(counts.mean(0) - true)[:D] <= 4 * float(deviation[0]) / math.sqrt(parts) + 0.02 * true[:D]).all()
    assert np.asarray(counts)[:, 4:D].std() == pytest.approx(float(deviation[0]), rel=0.1)
    assert not np.asarray(counts)[:, D:].any()


@pytest.mark.parametrize("name", NAMES)
def test_reports_speak_for_values_with_the_probabilities_that_epsilon_allows(name):
    """Exactly e^eps between any two values: p / q of krr and of the hashes, p (1 - q) / (q (1 - p)) of independent bits."""
    oracle, values, reports = asked(name)
    speaks = np.asarray(jax.vmap(oracle.speaks)(reports))[:, :D]
    own = speaks[np.arange(USERS), values].mean()
    other = (speaks.sum() - own * USERS) / (USERS * (D - 1))
    assert own == pytest.approx(float(oracle.p(D)), abs=0.01) and other == pytest.approx(float(oracle.q(D)), abs=0.01)
    p, q = float(oracle.p(D)), float(oracle.q(D))
    ratio = {"krr": p / q, "oue": p * (1 - q) / (q * (1 - p)), "olh": p / ((1 - p) / (round(math.e)))}[name]
    assert ratio == pytest.approx(math.e)


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_as_large_as_its_alphabet(name):
    assert frequency(name, 1.0, WIDTH).bits(D) == {"krr": 3, "oue": D, "olh": 64 + 2}[name]


def crowd(seed=0, parties=4, users=6000, bits=12, apart=0.3):
    """Users of parties of unequal size, their items by Zipf's law, of which some have another name at each party."""
    rng = np.random.default_rng(seed)
    codes, weights = rng.permutation(1 << bits)[:400], 1 / np.arange(1, 401) ** 1.2
    items, party = [], []
    for p in range(parties):
        own, moved = codes.copy(), rng.random(400) < apart
        own[moved] = rng.permutation(codes[moved])
        size = users * (p + 2) // 4
        items.append(rng.choice(own, size, p=weights / weights.sum()))
        party.append(np.full(size, p))
    return np.concatenate(items), np.concatenate(party)


@pytest.mark.full
def test_without_privacy_it_finds_the_most_frequent_and_their_counts():
    items, party = crowd()
    for options in ({"prune": False}, {"prune": True}, {"shared": 0, "cap": 1, "prune": False}):
        found = taps(jax.random.key(1), items, party, k=5, epsilon=math.inf, bits=12, levels=4, oracle="krr", **options)
        assert f1(found.items, items, 5) >= 0.8 and found.items[0] == most(items, 1)[0]
        top = found.items[0]
        assert found.counts[0] == pytest.approx((items == top).sum(), rel=0.1)
    everything = taps(jax.random.key(1), np.repeat([3, 9, 7], [500, 300, 100]), np.zeros(900, int), k=3, epsilon=math.inf, bits=4, levels=1, oracle="krr")
    assert everything.items.tolist() == [3, 9, 7] and everything.counts.tolist() == [500, 300, 100]


@pytest.mark.parametrize("options", [{"prune": True}, *(pytest.param(options, marks=pytest.mark.full) for options in (
    {"prune": False}, {"shared": 0, "cap": 1, "prune": False}, {"oracle": "olh"}, {"probe": 0.5, "shared": 3}))])
def test_every_user_reports_exactly_once(options):
    items, party = crowd(users=800)
    found = taps(jax.random.key(2), items, party, k=5, bits=12, levels=4, **options)
    assert (found.reports == 1).all() and len(set(found.items.tolist())) == 5
    assert found.bytes_up >= len(items) and found.bytes_down > 0


def test_what_is_not_separated_is_kept():
    counts = np.array([9.0, 100.0, 40.0, 42.0, 8.0])
    kept = [Estimate(np.arange(5), counts, deviation).first(2, 2).candidates.tolist() for deviation in (1.0, 2.0, 33.0)]
    assert kept == [[1, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_what_the_numbers_mean():
    items = np.repeat([5, 1, 8], [3, 2, 1])
    assert most(items, 2).tolist() == [5, 1] and f1(np.array([1, 9]), items, 2) == 0.5
    assert [ncr(np.array(x), items, 2) for x in ([5, 1], [5, 9], [1, 9])] == pytest.approx([1, 2 / 3, 1 / 3])


def test_other_items_share_a_name_and_are_not_lost():
    """Users whose prefix is no candidate report "other", which takes nothing from the candidates' counts."""
    items = np.concatenate([np.full(3000, 0b1111), np.full(2000, 0b1110), np.arange(1000) % 8])
    found = taps(jax.random.key(0), items, np.zeros(6000, int), k=2, epsilon=4.0, bits=4, levels=2, cap=1, prune=False, shared=0)
    assert found.items.tolist() == [15, 14] and found.counts == pytest.approx([3000, 2000], rel=0.15)


def test_items_that_do_not_fit_are_refused():
    for options, words in itertools.product([{"bits": 3}, {"bits": 4, "levels": 5}], ["items must be below 2.bits and levels at most bits"]):
        with pytest.raises(ValueError, match=words):
            taps(jax.random.key(0), np.array([9]), np.array([0]), **options)
