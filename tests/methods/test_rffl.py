"""RFFL: reputations, rewards and bounds, beside what tests/methods/test_oracles.py shows."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry, tree
from fedjax_lab.engine import malice, mesh, sync
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.types import Adversary, Attack, Stream

N, CLONES = 7, 4
RIDERS = Adversary((Attack(0.3, idle=True, forge=lambda key, sight: jax.tree.map(
    lambda v: jax.random.uniform(key, v.shape, v.dtype, -9, 9), sight.own)),), jax.random.key(2))


@functools.cache
def ended(rounds, attacked=False, clones=False, **options):
    problem = problems.classifier()
    method = registry.make("rffl", problem.task, lr=0.1, epochs=2, batch_size="full", **options)
    population = problem.population
    if clones:  # the second client's examples belong to everybody
        def same(stream):
            return Stream(stream.examples, np.full(CLONES, stream.offset[1]), np.full(CLONES, stream.size[1]), stream.index)
        population = population._replace(train=same(population.train), test=same(population.test), counts=population.counts[[1] * CLONES])
    sim = sync.build(problem.task, method, population, uniform(population.clients, population.clients), mesh=mesh.make(1), length=rounds,
                     adversary=RIDERS if attacked else None)
    state, record = sim.segment(sim.world, sim.init(sim.world, jax.random.key(1)), jnp.int32(0), jnp.int32(rounds))
    return jax.device_get(state.server), jax.device_get(state.clients), record


@pytest.mark.full
def test_reputations_sum_to_one_and_the_best_gets_every_entry():
    server, _, record = ended(6)
    assert server.inside.all() and abs(server.r.sum() - 1) < 1e-6 and (server.r >= 0).all() and server.earned.max() == 1
    for client in range(N):
        kept = jax.tree.map(np.count_nonzero, server.reward(client))
        asked = jax.tree.map(lambda v, client=client: np.ceil(server.earned[client] * v.size - 1e-4), server.g)
        assert kept == asked
    bytes_down = np.asarray(record.rounds["bytes_down"])
    assert (bytes_down[0] == 4).all() and bytes_down[1].max() == 4 + 8 * tree.size(server.g) and len(set(bytes_down[1].tolist())) > 2


@pytest.mark.full
def test_clones_stay_clones_and_follow_each_other():
    server, rows, _ = ended(3, clones=True, bound=10.0)
    np.testing.assert_allclose(server.r, 1 / CLONES, rtol=1e-5)
    np.testing.assert_allclose(server.earned, 1, rtol=1e-5)
    assert all(np.ptp(leaf, 0).max() < 1e-6 for leaf in jax.tree.leaves(rows))


@pytest.mark.full
def test_free_riders_are_found_out():
    """Whatever they send has length `bound` at most, and after a few rounds nothing of it counts."""
    server, _, _ = ended(12, attacked=True, patience=6, bound=0.05, alpha=0.5)
    riders = np.asarray(malice.members(RIDERS, N, jnp.arange(N)))
    assert riders.sum() == 2 and not server.inside[riders].any() and not server.r[~server.inside].any() and abs(server.r.sum() - 1) < 1e-6
    assert server.inside[~riders].sum() >= 4  # the client with a single example may go too
    assert tree.norm(server.g) <= 0.05 + 1e-5
    assert not any(np.any(leaf) for rider in np.flatnonzero(riders) for leaf in jax.tree.leaves(server.reward(rider)))
