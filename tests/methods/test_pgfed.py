from __future__ import annotations

import functools
import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest


@functools.cache
def histories(rounds=3, **options):
    return bench.history(bench.make("pgfed", **options), segments=(1,) * rounds, cohort=3)


@pytest.mark.full
def test_without_the_others_it_is_fedavg_to_the_bit():
    mine, _ = bench.run(bench.make("pgfed", mu=0.0, lam=0.5))
    theirs, _ = bench.run(bench.make("fedavg", client_optimizer="momentum:0.9"))
    np.testing.assert_array_equal(mine.server.params["x"], theirs.server["x"])


@pytest.mark.parametrize("mu", [0.1, 2.0])
def test_the_correction_is_the_slope_of_the_linear_models(mu):
    method = bench.make("pgfed", mu=mu)
    server = histories(mu=mu)[1][0].server
    message = method.broadcast(jax.tree.map(jnp.asarray, server), 2, 0)
    g, y, alpha = server.g["x"], np.array([0.3, -1.0, 2.0]), np.asarray(message["alpha"])
    assert server.last.sum() == 3

    def mixture(y):
        return mu * sum(alpha[j] * (server.c[j] + g[j] @ y) for j in np.flatnonzero(server.last))

    np.testing.assert_allclose(message["own"]["x"], jax.grad(mixture)(y), rtol=1e-5)
    np.testing.assert_allclose(message["mean"]["x"], mu * g[server.last].mean(0), rtol=1e-5)


def test_gradients_and_values_are_those_at_the_clients_own_models():
    state, _ = histories()[2]
    people, task = bench.population(), bench.TASK
    for i in np.flatnonzero(state.server.last):
        whole = bench.client(people, i).train.whole()
        value, g = jax.value_and_grad(lambda p, whole=whole: task.loss(p, whole, jax.random.key(0))[0])({"x": jnp.asarray(state.clients.theta["x"][i])})
        np.testing.assert_allclose(state.server.g["x"][i], g["x"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.server.c[i], value - g["x"] @ state.clients.theta["x"][i], rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_weights_stay_above_zero_and_of_the_absent_where_they_were():
    runs = [state.server for state, _ in histories(lam=5.0)]
    for before, after in itertools.pairwise(runs):
        absent = ~after.last
        np.testing.assert_array_equal(before.alpha[absent], after.alpha[absent])
        met = after.alpha[after.last][:, before.last]
        assert (met >= 0).all() and (met == 0).any()
    still = histories(lam=0.0)[2][0].server.alpha
    assert set(np.unique(still)) == {-1.0, np.float32(1 / 3)}


@pytest.mark.full
def test_the_old_direction_stays_as_far_as_it_is_told():
    method = bench.make("pgfed", momentum=0.75)
    server = jax.tree.map(jnp.asarray, histories(momentum=0.75)[1][0].server)
    row = method.init_client(None, server.params, None)._replace(A={"x": jnp.array([1.0, 2.0, 3.0])})
    message = method.broadcast(server, 2, 0)
    result = method.local(jax.random.key(0), message, row, bench.client(bench.population(), 2))
    np.testing.assert_allclose(result.client.A["x"], 0.25 * message["own"]["x"] + 0.75 * row.A["x"], rtol=1e-5)


@pytest.mark.full
def test_exact_slopes_differ_and_cost_the_gradients_of_all():
    plain, exact = (histories(exact=e)[2] for e in (False, True))
    assert np.abs(plain[0].server.alpha - exact[0].server.alpha).max() > 1e-4
    down = [int(record.rounds["bytes_down"][0][0]) for _, record in (plain, exact)]
    assert down[1] - down[0] == 4 * 3 * 5  # six gradients in place of their mean
