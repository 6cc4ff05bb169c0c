from __future__ import annotations

import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

from fedjax_lab import registry
from fedjax_lab.methods.tasks.fot import extended
from fedjax_lab.types import Stages

PROBLEM = classifier()
OPTIONS = {"lr": 0.3, "batch_size": "full", "local_steps": 3, "head": "2", "task_rounds": 2}
rng = np.random.default_rng(0)


def make(**options):
    return registry.make("fot", PROBLEM.task, **{**OPTIONS, **options})


def grown(U, Y, r, eps):
    return np.asarray(extended(jnp.asarray(U, jnp.float32), jnp.asarray(Y, jnp.float32), jnp.float32(r), jnp.float32(eps)))


def test_a_basis_takes_the_fewest_directions_that_hold_enough_and_stays_orthonormal():
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    Y = Q[:, :4] @ np.diag([4.0, 2.0, 1.0, 0.5]) @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:4]
    held = np.cumsum([16, 4, 1, 0.25]) / 21.25
    for eps, k in ((0.1, 1), (held[0] - 0.01, 1), (held[0] + 0.01, 2), (held[1] + 0.01, 3), (held[2] + 0.001, 4)):
        U = grown(np.zeros((6, 6)), Y, 1.0, eps)
        assert (np.any(U, 0) == (np.arange(6) < k)).all()
        np.testing.assert_allclose(U @ U.T, Q[:, :k] @ Q[:, :k].T, atol=1e-5)
    more = grown(U * (np.arange(6) < 2), np.outer(Q[:, 5], np.ones(8)), 0.3, 0.9)  # of what is left there is one direction
    np.testing.assert_allclose(more.T @ more, np.diag([1, 1, 1, 0, 0, 0]), atol=1e-6)
    assert np.abs(more @ more.T @ Q[:, 5] - Q[:, 5]).max() < 1e-5
    nothing_needed = grown(np.zeros((6, 6)), Y, 0.02, 0.5)
    assert np.any(nothing_needed, 0).sum() == 1  # at least one
    np.testing.assert_array_equal(grown(more, np.zeros((6, 8)), 0.0, 0.9) != 0, more != 0)


@pytest.mark.full
def test_what_was_fed_before_stays():
    seen = bench.history(make(eps=0.5), PROBLEM.population, segments=(1,) * 5, task=PROBLEM.task)
    servers = [state.server for state, _ in seen]
    assert not servers[0].bases["w1"].any() and set(servers[0].bases) == {"w1"}
    for before, after in itertools.pairwise(servers[1:]):
        U, change = before.bases["w1"], after.params["w1"] - before.params["w1"]
        rank = np.any(U, 0).sum()
        assert 0 < rank < 5 and np.abs(change).max() > 1e-3
        np.testing.assert_allclose(U.T @ U, np.diag(np.arange(5) < rank), atol=1e-5)
        np.testing.assert_allclose(U.T @ change, 0, atol=1e-5)
    ranks = [np.any(server.bases["w1"], 0).sum() for server in servers]
    assert ranks[0] == 0 < ranks[1] == ranks[2] < ranks[3] == ranks[4]
    up = np.stack([record.rounds["bytes_up"][0].max() for _, record in seen])
    model, told = 4 * (5 * 4 + 4 + 4 * 3 + 3), 4 * (5 * 5 + 1)
    np.testing.assert_array_equal(up, [model, model + told] * 2 + [model])
    down = np.stack([record.rounds["bytes_down"][0].max() for _, record in seen])
    np.testing.assert_array_equal(down, [model, 2 * model, model, 2 * model + 4 * 5 * ranks[2], model])


@pytest.mark.full
def test_in_the_first_task_it_is_fedavg_and_with_all_directions_kept_the_layer_is_frozen():
    first, second = (bench.run(make(eps=1.0, others="frozen"), PROBLEM.population, rounds=rounds, task=PROBLEM.task)[0].server for rounds in (2, 4))
    plain = registry.make("fedavg", PROBLEM.task, lr=0.3, batch_size="full", local_steps=3, weighting="uniform")
    other = bench.run(plain, PROBLEM.population, rounds=2, task=PROBLEM.task)[0].server
    for name, value in other.items():
        np.testing.assert_allclose(first.params[name], value, atol=1e-6)
    assert np.any(first.bases["w1"], 0).all()
    np.testing.assert_allclose(second.params["w1"], first.params["w1"], atol=1e-5)
    np.testing.assert_array_equal(second.params["b1"], first.params["b1"])
    assert np.abs(second.params["w2"] - first.params["w2"]).max() > 1e-2


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'fot' needs a model whose layers' inputs are known; task 'quadratic' has no taps"):
        bench.start(bench.make("fot"))
    with pytest.raises(ValueError, match="'fot' has no kernel to project: head='w' .* w1, w2"):
        bench.start(make(head="w"), PROBLEM.population, PROBLEM.task)
    train = PROBLEM.population.train
    tasks = PROBLEM.population._replace(stages=Stages(np.int32(7), train.offset[None], train.size[None], PROBLEM.population.counts[None]))
    with pytest.raises(ValueError, match="task_rounds=2: 'fot' must know when a task ends; those of the clients take 7 rounds"):
        bench.start(make(), tasks, PROBLEM.task)


@pytest.mark.full
def test_eps_grows_by_its_step():
    state, _ = bench.run(make(eps=0.5, eps_step=0.125), PROBLEM.population, rounds=4, task=PROBLEM.task)
    assert state.server.eps == 0.75 and jax.tree.structure(state.server.params) == jax.tree.structure(PROBLEM.task.init(jax.random.key(0)))
