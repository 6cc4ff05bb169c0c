from __future__ import annotations

import bench
import jax
import numpy as np
import pytest


def ended(rounds=4, **options):
    return bench.run(bench.make("ditto", **options), rounds=rounds)


@pytest.mark.full
def test_the_server_is_fedavgs_to_the_bit():
    for lam in (0.0, 0.7):
        np.testing.assert_array_equal(ended(lam=lam)[0].server["x"], bench.path("fedavg"))


@pytest.mark.full
def test_without_the_pull_it_is_training_alone():
    alone, _ = bench.run(bench.make("local", who="sampled"))
    np.testing.assert_allclose(ended(lam=0.0)[0].clients["x"], alone.clients["x"], rtol=1e-6)


def test_a_strong_pull_holds_the_models_at_the_global_one():
    """lr lam = 1: a step ends at x^t but for the gradient, which is lam times smaller."""
    state, _ = ended(rounds=1, lam=1e4, lr=1e-4)
    np.testing.assert_allclose(state.clients["x"], np.ones((6, 3)), atol=5e-3)


def test_the_anchor_is_the_model_received():
    method = bench.make("ditto", lam=0.5, local_steps=1)
    x, v = {"x": np.full(3, 2.0, np.float32)}, {"x": np.zeros(3, np.float32)}
    data = bench.client(bench.population(), 3)
    result = method.local(jax.random.key(0), {"model": x}, v, data)
    slope = jax.grad(lambda p: bench.TASK.loss(p, data.train.whole(), None)[0])(v)["x"]
    np.testing.assert_allclose(result.client["x"], -0.05 * (slope + 0.5 * (0 - 2.0)), rtol=1e-5)


@pytest.mark.full
def test_personal_epochs_are_its_own():
    few, many = (ended(rounds=1, lam=0.1, personal_epochs=n)[0] for n in (1, 40))
    np.testing.assert_array_equal(few.server["x"], many.server["x"])
    assert np.abs(many.clients["x"][0] - 1).max() > 2 * np.abs(few.clients["x"][0] - 1).max()


@pytest.mark.full
def test_who_does_not_take_part_keeps_its_model():
    state, _ = ended(rounds=1)
    assert (np.asarray(state.clients["x"]) != 1).any(1).tolist() == [True, False, True, False, True, False]
