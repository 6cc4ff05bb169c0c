from __future__ import annotations

import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def gradients(x):
    """[6, DIM] of the clients of the bench at x."""
    people = bench.population()
    a, o = (people.train.examples[k] for k in "ao")
    at = np.repeat(np.arange(6), people.train.size)
    return np.stack([(a * (x - o))[at == i].mean(0) for i in range(6)])


def test_in_turn_with_everybody_and_one_step_it_is_gradient_descent_in_every_second_round():
    x = np.ones(bench.DIM)
    seen = bench.history(bench.make("fedamd", p="sequential", lr=0.1, local_steps=1), segments=(1,) * 6, cohort=6)
    for t, (state, _) in enumerate(seen):
        before, x = x, x - 0.1 * gradients(x).mean(0) * (t % 2)  # in round 1 the first miners' step, along the anchors at x^0
        np.testing.assert_allclose(state.server.params["x"], x, rtol=1e-5)
        np.testing.assert_allclose(state.server.v["x"], gradients(before).mean(0), rtol=1e-4, atol=1e-5)
        assert state.clients["x"].shape == (6, bench.DIM)


@pytest.mark.full
def test_v_is_the_mean_of_the_anchors_which_only_anchors_renew():
    seen = bench.history(bench.make("fedamd", p=0.5), segments=(1,) * 6)
    both = 0
    for (before, _), (after, record) in itertools.pairwise(seen):
        np.testing.assert_allclose(after.server.v["x"], after.clients["x"].mean(0), rtol=1e-5, atol=1e-6)
        here, down, up = (record.rounds[k][0] for k in ("ids", "bytes_down", "bytes_up"))
        anchors = here[down == 12 + 1 + 1]  # the model, one bit in place of v, and the role
        assert set(down) <= {14, 12 + 13 + 1} and set(up) <= {13 + 1}
        both += 0 < len(anchors) < len(here)
        fresh = gradients(before.server.params["x"])
        rest = np.setdiff1d(np.arange(6), anchors)
        np.testing.assert_allclose(after.clients["x"][anchors], fresh[anchors], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(after.clients["x"][rest], before.clients["x"][rest])
        moved = not np.array_equal(after.server.params["x"], before.server.params["x"])
        assert moved == (len(anchors) < len(here))  # a round without miners leaves x alone
    assert both


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_coins_fall_as_often_as_p_says(p):
    method = bench.make("fedamd", p=p)
    server = method.init_server(jax.random.key(1), {"x": jnp.ones(3)}, None)
    roles = jax.vmap(jax.vmap(lambda i, t: method.exchanges[1].broadcast(server, i, t)["mining"], (0, None)), (None, 0))
    share = 1 - np.mean(roles(jnp.arange(50), jnp.arange(40)))
    assert abs(share - p) <= 3 * np.sqrt(p * (1 - p) / 2000)


@pytest.mark.full
def test_it_reaches_the_optimum_with_half_of_the_clients_and_unequal_steps():
    best = bench.optimum(bench.population(), "uniform")
    x = bench.path("fedamd", p=0.5, rounds=500, lr=0.1, per_step=True, server_lr=2.0)
    np.testing.assert_allclose(x, best, atol=1e-4)
    assert np.linalg.norm(bench.path("fedavg", weighting="uniform", rounds=500, lr=0.1) - best) > 0.05
