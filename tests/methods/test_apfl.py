from __future__ import annotations

import bench
import jax
import numpy as np
import pytest


def ended(rounds=4, **options):
    return bench.run(bench.make("apfl", **options), rounds=rounds)


@pytest.mark.full
def test_the_server_is_fedavgs_to_the_bit():
    for share in (0.0, 0.6):
        np.testing.assert_array_equal(ended(share=share)[0].server["x"], bench.path("fedavg"))


@pytest.mark.full
def test_a_share_of_one_is_training_alone():
    alone, _ = bench.run(bench.make("local", who="sampled"))
    state, _ = ended(share=1.0, adaptive=False)
    np.testing.assert_allclose(state.clients.v["x"], alone.clients["x"], rtol=1e-6)
    np.testing.assert_array_equal(state.clients.a, np.ones(6))


def test_a_share_of_zero_is_the_local_copy():
    method = bench.make("apfl", share=0.0, adaptive=False)
    state, _ = bench.run(method, rounds=1)
    np.testing.assert_array_equal(state.clients.v["x"], np.ones((6, 3)))
    x, data = {"x": np.ones(3, np.float32)}, bench.client(bench.population(), 2)
    local = bench.make("fedavg").local(jax.random.key(0), {"model": x}, (), data).upload["model"]["x"]
    row = method.local(jax.random.key(0), {"model": x}, method.init_client(None, x, None), data).client
    np.testing.assert_array_equal(method.personal(None, None, row, None)["x"], row.w["x"])
    np.testing.assert_allclose(row.w["x"] - 1, local, rtol=1e-5)


def test_one_step_by_hand():
    method, data = bench.make("apfl", share=0.25, local_steps=1), bench.client(bench.population(), 3)
    x, v = np.full(3, 2.0, np.float32), np.array([0.5, -1.0, 0.0], np.float32)
    row = method.init_client(None, {"x": x}, None)._replace(v={"x": v})
    new = method.local(jax.random.key(0), {"model": {"x": x}}, row, data).client
    slope = lambda p: np.asarray(jax.grad(lambda q: bench.TASK.loss({"x": q}, data.train.whole(), None)[0])(p))
    mixed = slope(0.25 * v + 0.75 * x)
    np.testing.assert_allclose(new.w["x"], x - 0.05 * slope(x), rtol=1e-5)
    np.testing.assert_allclose(new.v["x"], v - 0.05 * 0.25 * mixed, rtol=1e-5)
    np.testing.assert_allclose(new.a, np.clip(0.25 - 0.05 * ((v - x) @ mixed), 0, 1), rtol=1e-5)


def test_the_share_stays_in_its_range():
    state, record = ended(rounds=6, lr=0.5, share=0.5)
    assert ((state.clients.a >= 0) & (state.clients.a <= 1)).all() and np.ptp(state.clients.a) > 0
    assert (record.rounds["share"] <= 1).all()
