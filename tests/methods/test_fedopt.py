from __future__ import annotations

import bench
import jax
import numpy as np
import pytest


@pytest.mark.parametrize("name", ["fedadagrad", "fedyogi", "fedadam"])
def test_a_large_tau_is_momentum_with_half_the_rate_over_tau(name):
    tau, decay = 1e4, {"beta1": 0.6} | ({} if name == "fedadagrad" else {"beta2": 1.0})
    adaptive = bench.path(name, tau=tau, server_lr=2 * tau, **decay)  # sqrt(v) stays at tau, hence the two
    np.testing.assert_allclose(adaptive, bench.path("fedavgm", form="ema", beta=0.6), rtol=1e-5)


@pytest.mark.parametrize("name", ["fedadagrad", "fedyogi", "fedadam"])
def test_the_first_step_is_the_formula(name):
    tau, beta1, beta2, lr = 0.05, 0.4, 0.8, 0.3
    u = bench.path("fedavg", rounds=1) - 1
    square = u * u
    v = {"fedadagrad": tau**2 + square, "fedadam": beta2 * tau**2 + (1 - beta2) * square,
         "fedyogi": tau**2 - (1 - beta2) * square * np.sign(tau**2 - square)}[name]
    method = bench.make(name, tau=tau, beta1=beta1, server_lr=lr, **({} if name == "fedadagrad" else {"beta2": beta2}))
    state, _ = bench.run(method, rounds=1)
    np.testing.assert_allclose(state.server.memory.v["x"], v, rtol=1e-5)
    np.testing.assert_allclose(method.deploy(state.server)["x"], 1 + lr * (1 - beta1) * u / (np.sqrt(v) + tau), rtol=1e-5)


@pytest.mark.full
def test_nobody_with_examples_means_no_step():
    method = bench.make("fedadam")
    state, _ = bench.run(method, bench.population((0, 0, 3)), cohort=bench.always(0, 1), rounds=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.server))
    assert np.asarray(method.deploy(state.server)["x"]).tolist() == [1.0] * bench.DIM
