from __future__ import annotations

import functools
import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry
from fedjax_lab.methods.personalization.fedselect import NEW, OWN, SHARED, grown

PROBLEM = problems.classifier()


@functools.cache
def histories(rounds=6, **options):
    method = registry.make("fedselect", PROBLEM.task, **{"lr": 0.1, "batch_size": 4, "epochs": 2, **options})
    return bench.history(method, PROBLEM.population, segments=(1,) * rounds, cohort=bench.always(*range(7)), task=PROBLEM.task)


def test_the_share_that_moved_most_becomes_personal():
    moved = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]])
    part = jnp.array([[SHARED, SHARED, OWN], [SHARED, SHARED, SHARED]], jnp.int8)
    np.testing.assert_array_equal(grown(part, moved, 0.4, 0.8), [[SHARED, NEW, OWN], [NEW, SHARED, SHARED]])  # 2 of the five that are shared
    np.testing.assert_array_equal(grown(part, moved, 0.4, 0.1), part)
    np.testing.assert_array_equal(grown(part[0], moved[0], 1.0, 1.0), part[0])


@pytest.mark.full
def test_masks_only_grow_up_to_the_bound_and_vectors_are_shared():
    shares = []
    for before, after in itertools.pairwise(histories(p=0.4, bound=0.5, period=1)):
        old, new = before[0].clients.part, after[0].clients.part
        for name in ("w1", "w2"):
            assert ((old[name] == SHARED) | (new[name] == OWN)).all()
        assert not new["b1"].any() and not new["b2"].any()
        shares.append((new["w1"] != SHARED).reshape(7, -1).mean(1))
    assert (np.diff(shares, axis=0) >= 0).all() and np.max(shares) <= 0.5 + 0.4 * 0.5 + 0.05
    np.testing.assert_allclose(shares[0], 0.4)


def test_what_is_shared_is_the_plain_mean_over_those_who_share():
    before, after = (state for state, _ in histories(p=0.4, bound=0.5, period=1)[2:4])
    for name in ("w1", "w2", "b1"):
        shared = before.clients.part[name] == SHARED  # of which the next round's training is shared
        theta = after.clients.theta[name]
        mean = np.sum(theta * shared, 0) / np.maximum(shared.sum(0), 1)
        expected = np.where(shared.any(0), mean, before.server.params[name])
        np.testing.assert_allclose(after.server.params[name], expected, rtol=1e-5, atol=1e-6)


def test_bytes_follow_the_masks():
    runs = histories(p=0.4, bound=0.5, period=1)
    for (before, _), (after, record) in itertools.pairwise(runs):
        shared = sum((part == SHARED).reshape(7, -1).sum(1) for part in before.clients.part.values())
        np.testing.assert_array_equal(record.rounds["bytes_up"][0], -(-(32 * shared + 39) // 8))
        np.testing.assert_array_equal(after.server.bits, 32 * shared)
        np.testing.assert_array_equal(record.rounds["bytes_down"][0], before.server.bits // 8)


@pytest.mark.full
def test_without_a_share_it_is_fedavg():
    """The pass of the personal entries comes first and changes nothing."""
    theirs = registry.make("fedavg", PROBLEM.task, lr=0.1, batch_size=4, epochs=2, weighting="uniform")
    state, _ = bench.run(theirs, PROBLEM.population, rounds=6, cohort=bench.always(*range(7)), task=PROBLEM.task)
    mine = histories(p=0.0)[-1][0].server.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, state.server)


@pytest.mark.parametrize("name, why", [("wire_up", "only what a client shares"), ("aggregator", "sharers of its own")])
def test_it_refuses_what_does_not_know_masks(name, why):
    assert why in registry.catalog("method")["fedselect"].info.refuses[name]
