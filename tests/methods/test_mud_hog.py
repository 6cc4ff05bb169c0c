"""MUD-HoG's decisions, beside what tests/methods/test_oracles.py shows, and the clusterings that they rest on."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from fedjax_lab.methods.trust.mud_hog import NOISE, SIGN, TARGETED, Marks, judged
from fedjax_lab.parts import outliers

CLIENTS, WIDTH = 20, 300
FLIPPERS, NOISY, TARGETS = [2, 9], [5, 14, 17], [0, 11, 19]


def marks(n=CLIENTS):
    none = jnp.zeros(n, jnp.int32)
    return Marks(none, jnp.zeros((n, 3), jnp.int32), none, none, none, jnp.zeros(n, bool))


def changes(seed, flippers=(), noisy=(), targets=()):
    """A round's changes: a common direction with a spread; some flipped, some with much noise, some aside."""
    rng = np.random.default_rng(seed)
    v = np.ones(WIDTH) + 0.5 * rng.normal(size=(CLIENTS, WIDTH))
    v[list(flippers)] *= -3
    v[list(noisy)] += 4 * rng.normal(size=(len(noisy), WIDTH))
    v[list(targets)] += 1.5 * (np.arange(WIDTH) < 40)
    return v


@functools.partial(jax.jit, static_argnames=("eps", "least"))
def step(state, s, total, heard, eps=1.5, least=5):
    return judged(state, {"x": s}, {"x": total}, heard, eps, least)


def judge(rounds, order=None, heard=None, eps=1.5, until=99, **who):
    """The marks after so many rounds whose histories are as they should be; who attacks does so until a round."""
    order = np.arange(CLIENTS) if order is None else order
    heard = jnp.ones(CLIENTS, bool) if heard is None else heard
    state, seen, aside = marks(), [], None
    for t in range(rounds):
        seen.append(changes(t, **(who if t < until else {}))[order])
        s = np.mean(seen[-3:], 0)
        state, aside = step(state, jnp.asarray(s, jnp.float32), jnp.asarray(np.sum(seen, 0), jnp.float32), heard, eps)
    return jax.device_get(state), np.asarray(aside)


ATTACKED = {"flippers": FLIPPERS, "noisy": NOISY, "targets": TARGETS}


def test_attackers_are_told_apart_after_their_rounds():
    state, aside = judge(2, **ATTACKED)
    assert [np.flatnonzero(state.kind == k).tolist() for k in (SIGN, NOISE, TARGETED)] == [FLIPPERS, NOISY, []]
    assert np.flatnonzero(aside).tolist() == sorted(FLIPPERS + NOISY + TARGETS)  # the targeted are suspects only
    state, _ = judge(5, **ATTACKED)
    assert [np.flatnonzero(state.kind == k).tolist() for k in (SIGN, NOISE, TARGETED)] == [FLIPPERS, NOISY, TARGETS]


def test_who_stops_sending_noise_is_pardoned_and_unreliable():
    state, _ = judge(10, until=4, noisy=NOISY)
    assert not state.kind[NOISY].any() and state.unreliable[NOISY].all()
    assert judge(4, until=4, noisy=NOISY)[0].kind[NOISY].tolist() == [NOISE] * 3


def test_without_attackers_and_without_a_radius_nobody_is_taken_for_noise():
    state, _ = judge(8, eps=np.inf)
    assert not (state.kind == NOISE).any() and not state.hits[:, 1].any() and not (state.kind == SIGN).any()


def test_decisions_go_with_the_clients():
    order = np.random.default_rng(5).permutation(CLIENTS)
    (state, aside), (other, other_aside) = judge(5, **ATTACKED), judge(5, order, **ATTACKED)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), (state, aside), (other, other_aside))


def test_who_was_not_heard_is_not_looked_at():
    heard = np.ones(CLIENTS, bool)
    heard[[2, 5]] = False
    state, aside = judge(5, heard=jnp.asarray(heard), **ATTACKED)
    assert not any(np.any(leaf[[2, 5]]) for leaf in state) and not aside[[2, 5]].any()
    assert state.kind[9] == SIGN and state.kind[14] == NOISE


@pytest.mark.parametrize("seed", range(4))
def test_density_is_dbscan(seed):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(size=(12, 2)), rng.normal(size=(9, 2)) + 4, rng.uniform(-6, 9, (9, 2))])
    there = rng.random(30) < 0.9
    d = np.linalg.norm(points[:, None] - points[None], axis=2).astype(np.float32)
    labels = np.asarray(outliers.density(jnp.asarray(np.where(there[:, None] & there, d, np.inf)), jnp.asarray(there), 1.1, 4))
    theirs = DBSCAN(eps=1.1, min_samples=4, metric="precomputed").fit_predict(d[there][:, there])
    mine = labels[there]
    np.testing.assert_array_equal(mine < 0, theirs < 0)
    assert len(set(zip(mine, theirs, strict=True))) == len(set(mine)) == len(set(theirs)) and (labels[~there] == -1).all()
    sizes = {k: (labels == k).sum() for k in set(mine) - {-1}}
    np.testing.assert_array_equal(outliers.largest(jnp.asarray(labels)), labels == max(sizes, key=lambda k: (sizes[k], -k)))


@pytest.mark.full
def test_two_means_and_the_largest_gap():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(5, 3)), rng.normal(size=(9, 3)) + 6])
    squared = jnp.asarray(((points[:, None] - points[None]) ** 2).sum(2))
    everybody = jnp.ones(14, bool)
    assert np.flatnonzero(outliers.smaller_half(squared, everybody)).tolist() == [0, 1, 2, 3, 4]
    assert not outliers.smaller_half(squared, everybody.at[9:].set(False).at[3].set(False)).any()  # four against four
    assert not outliers.smaller_half(squared, jnp.zeros(14, bool)).any()
    values = jnp.array([3.0, 50.0, 1.0, 9.0, 2.0])
    assert float(outliers.gap(values, jnp.array([True, False, True, True, True]))) == 6.0
    assert np.isnan(outliers.gap(values, jnp.arange(5) == 2))
