from __future__ import annotations

import bench
import jax
import numpy as np
import pytest

LAM = 2.0


def unit(centers):
    """Clients with f_i = 1/2 ||x - c_i||^2, one example each."""
    from fedjax_lab.types import Population, Stream

    c = np.asarray(centers, np.float32)
    n = len(c)
    stream = Stream({"a": np.ones_like(c), "o": c}, np.arange(n, dtype=np.int32), np.ones(n, np.int32))
    return Population(stream, stream, np.zeros((n, 0), np.float32))


CENTERS = np.array([[1.0, 0, 2], [-1, 3, 0], [0, 1, 1], [2, 2, -1]])


def make(**options):
    return bench.make("pfedme", **{"lam": LAM, "mu": 0.0, "personal_lr": 0.2, "inner": 80, "local_steps": 1, **options})


def test_theta_solves_the_proximal_problem():
    method, data = make(), bench.client(unit(CENTERS), 1)
    x = {"x": np.array([0.5, -0.5, 1.0], np.float32)}
    result = method.local(jax.random.key(0), {"model": x}, x, data)
    theta = (CENTERS[1] + LAM * x["x"]) / (1 + LAM)
    np.testing.assert_allclose(result.client["x"], theta, atol=1e-5)
    np.testing.assert_allclose(result.upload["model"]["x"], -0.05 * LAM * (x["x"] - theta), atol=1e-5)  # lr lam (w - theta)


def test_the_envelopes_gradient():
    """lam (w - theta(w)) against differences of min_theta f + lam/2 ||theta - w||^2."""
    data, w, h = bench.client(bench.population(), 3), np.array([0.3, -0.2, 0.8]), 1e-4
    a, o = (np.asarray(data.train.whole()[k], np.float64)[:6] for k in "ao")
    curve, pull = a.mean(0), (a * o).mean(0)

    def theta(w):
        return (pull + LAM * w) / (curve + LAM)

    def envelope(w):
        t = theta(w)
        return (0.5 * a * (t - o) ** 2).sum(1).mean() + LAM / 2 * ((t - w) ** 2).sum()

    numeric = [(envelope(w + h * e) - envelope(w - h * e)) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(LAM * (w - theta(w)), numeric, rtol=1e-5)
    method = make(inner=400, personal_lr=0.15)
    x = {"x": np.float32(w)}
    found = method.local(jax.random.key(0), {"model": x}, x, data).client["x"]
    np.testing.assert_allclose(found, theta(w), atol=1e-4)


def test_the_fixed_point_is_the_mean_of_the_minima():
    state, _ = bench.run(make(lr=0.4), unit(CENTERS), rounds=40, cohort=bench.always(0, 1, 2, 3))
    np.testing.assert_allclose(state.server["x"], CENTERS.mean(0), atol=1e-3)
    np.testing.assert_allclose(state.clients["x"], (CENTERS + LAM * CENTERS.mean(0)) / (1 + LAM), atol=1e-3)


@pytest.mark.full
def test_a_whole_step_gives_the_mean_of_the_personal_models():
    state, _ = bench.run(make(lr=1 / LAM), unit(CENTERS), rounds=1, cohort=bench.always(0, 1, 2, 3))
    np.testing.assert_allclose(state.server["x"], np.asarray(state.clients["x"]).mean(0), rtol=1e-5)


@pytest.mark.full
def test_beta_mixes():
    ends = {beta: np.asarray(bench.run(make(beta=beta, lr=0.2), rounds=1)[0].server["x"]) for beta in (0.5, 1.0, 2.0)}
    np.testing.assert_allclose(ends[2.0] - 1, 4 * (ends[0.5] - 1), rtol=1e-5)
    np.testing.assert_allclose(ends[1.0] - 1, 2 * (ends[0.5] - 1), rtol=1e-5)


def test_theta_goes_on_from_batch_to_batch():
    """With one inner step a batch, the second starts where the first ended, pulled to the moved w."""
    method, data, x = make(inner=1, local_steps=2, personal_lr=0.1, mu=0.01), bench.client(unit(CENTERS), 0), np.zeros(3)
    theta, w = x.copy(), x.copy()
    for _ in range(2):
        theta = theta - 0.1 * ((theta - CENTERS[0]) + LAM * (theta - w) + 0.01 * theta)
        w = w - 0.05 * LAM * (w - theta)
    zero = {"x": np.zeros(3, np.float32)}
    result = method.local(jax.random.key(0), {"model": zero}, zero, data)
    np.testing.assert_allclose(result.client["x"], theta, rtol=1e-5)
    np.testing.assert_allclose(result.upload["model"]["x"], w, rtol=1e-5)


def test_other_optimizers_are_refused():
    with pytest.raises(ValueError, match="'pfedme' refuses client_optimizer 'adam'"):
        bench.make("pfedme", client_optimizer="adam")
