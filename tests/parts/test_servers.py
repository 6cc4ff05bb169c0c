from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lab import registry, tree
from fedjax_lab.parts.servers import optimizers
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.types import Method, Phase

X = {"x": jnp.array([1.0, -2.0, 3.0])}
CHANGES = [{"x": jnp.asarray(u, jnp.float32)} for u in np.random.default_rng(0).normal(size=(5, 3))]


def play(server, changes=CHANGES):
    state, x = server.init(X), X
    for u in changes:
        state, x = optimizers.advance(server, state, x, u)
    return state, np.asarray(x["x"])


def reference(optimizer, changes=CHANGES):
    state, x = optimizer.init(X), X
    for u in changes:
        step, state = optimizer.update(tree.scale(-1.0, u), state, x)
        x = optax.apply_updates(x, step)
    return np.asarray(x["x"])


def test_momentum_is_optax_sgd_on_the_pseudo_gradient():
    for nesterov in (False, True):
        np.testing.assert_allclose(play(optimizers.momentum(lr=0.3, beta=0.8, nesterov=nesterov))[1], reference(optax.sgd(0.3, 0.8, nesterov)), rtol=1e-5)
    np.testing.assert_allclose(play(optimizers.sgd(lr=0.3))[1], reference(optax.sgd(0.3)), rtol=1e-6)


def test_a_constant_change_settles():
    constant = [{"x": jnp.ones(3)}] * 200
    np.testing.assert_allclose(play(optimizers.momentum(beta=0.9), constant)[0].m["x"], 10, rtol=1e-5)
    np.testing.assert_allclose(play(optimizers.momentum(beta=0.9, form="ema"), constant)[0].m["x"], 1, rtol=1e-5)


def test_yogi_is_adam_where_the_square_is_the_second_moment():
    tau = 0.5
    at = [{"x": jnp.array([tau, -tau, tau])}]
    np.testing.assert_allclose(play(optimizers.yogi(tau=tau), at)[1], play(optimizers.adam(tau=tau), at)[1], rtol=1e-6)


def test_adaptive_second_moments():
    for make in (optimizers.adagrad, optimizers.adam, optimizers.yogi):
        server, squares = make(tau=0.1), []
        state = server.init(X)
        for u in CHANGES:
            state, _ = server.step(state, u)
            squares.append(np.asarray(state.v["x"]))
            assert (squares[-1] > 0).all()
        if make is optimizers.adagrad:
            assert (np.diff(squares, axis=0) >= 0).all()
            np.testing.assert_allclose(squares[-1], 0.01 + sum(u["x"] ** 2 for u in CHANGES), rtol=1e-5)


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.momentum, optimizers.adagrad, optimizers.adam, optimizers.yogi])
def test_statistics_take_the_mean_change_as_it_is(make):
    params, u = {"params": X, "stats": jnp.ones(2)}, {"params": X, "stats": jnp.full(2, 0.25)}
    server = make(lr=0.5)
    _, new = optimizers.advance(server, server.init(params), params, u)
    assert new["stats"].tolist() == [1.25, 1.25] and jax.tree.leaves(new["params"])[0].tolist() != [2.0, -4.0, 6.0]


def test_served_is_registered_by_name_and_an_identity_with_plain_sgd():
    assert {"sgd", "momentum", "adagrad", "adam", "yogi"} <= set(registry.catalog("server"))
    plain = Method(lambda *a: None)
    method = served(plain, optimizers.sgd())
    state = method.init_server(None, X, None)
    new = method.serve(None, state, {"model": CHANGES[0]}, None)
    assert method.phases == () and method.deploy(state) == X and method.broadcast(state, 0, 0) == {"model": X}
    np.testing.assert_allclose(method.deploy(new)["x"], plain.serve(None, X, {"model": CHANGES[0]}, None)["x"], rtol=1e-6)


def test_of_several_phases_the_last_is_served():
    base = Method(lambda *a: None)
    first = Phase(base.local, base.broadcast, {}, {}, {}, lambda key, x, aggregate, cohort: x)
    method = served(base._replace(phases=(first, *base.exchanges)), optimizers.sgd(lr=0.5))
    state = method.init_server(None, X, None)
    kept, moved = (phase.serve(None, state, {"model": CHANGES[0]}, None).server["x"] for phase in method.phases)
    np.testing.assert_allclose(kept, X["x"])
    np.testing.assert_allclose(moved, X["x"] + 0.5 * CHANGES[0]["x"], rtol=1e-6)
