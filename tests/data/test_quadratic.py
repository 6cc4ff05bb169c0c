from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.data import quadratic, sources


def batch(arrays, mask=None):
    return {**{k: jnp.asarray(v) for k, v in arrays.items()}, "mask": jnp.ones(len(arrays["a"]), bool) if mask is None else mask}


@pytest.mark.parametrize("text", ["quadratic", "quadratic:7,dim=3,rows=4,scatter=2"])
def test_the_optimum_has_no_gradient(text):
    origin = sources.load(text)
    task = quadratic.quadratic_task(origin.train["a"].shape[1])
    params = {"x": jnp.asarray(origin.truth["optimum"], jnp.float32)}
    gradient = jax.grad(lambda p: task.loss(p, batch(origin.train), jax.random.key(0))[0])(params)["x"]
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    here, there = (float(task.loss({"x": params["x"] + d}, batch(origin.train), jax.random.key(0))[0]) for d in (0, 0.1))
    assert here < there


def test_the_family_is_as_documented():
    origin = sources.load("quadratic:2000,spread=5,rows=3,scatter=1")
    a, o = origin.train["a"].reshape(2000, 3, 10), origin.train["o"].reshape(2000, 3, 10)
    assert np.log(a).min() >= -1.5 and np.log(a).max() <= 1.5 and np.log(a).std() == pytest.approx(3 / 12**0.5, rel=0.02)
    assert (a == a[:, :1]).all() and o.std() == pytest.approx((25 + 2 / 3) ** 0.5, rel=0.02)
    np.testing.assert_allclose(o.mean(1), origin.truth["minima"], atol=1e-4)
    assert origin.keys["client"].tolist() == np.repeat(np.arange(2000), 3).tolist() and origin.test is origin.train


def test_weighted_optimum_is_the_closed_form():
    a, o = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(quadratic.optimum({"a": a, "o": o}), [1 / 4, 4 / 6])
    np.testing.assert_allclose(quadratic.optimum({"a": a, "o": o}, np.array([3.0, 1.0])), [3 / 6, 4 / 10])


def test_the_gradient_is_a_times_the_distance_and_padding_is_nothing():
    task = quadratic.quadratic_task(2, start=1.5)
    params = task.init(jax.random.key(0))
    assert params["x"].tolist() == [1.5, 1.5]
    rows = {"a": np.array([[1.0, 2.0], [9.0, 9.0]], np.float32), "o": np.array([[0.0, 1.0], [7.0, 7.0]], np.float32)}
    (value, aux), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, batch(rows, jnp.array([True, False])), None)
    np.testing.assert_allclose(gradient["x"], [1.5, 1.0])
    assert value == pytest.approx(0.5 * (1.5**2 + 2 * 0.25)) and aux.stats == ()
    np.testing.assert_allclose(task.metrics(task.apply(params, batch(rows)), batch(rows))["loss"][0], value)


def test_gradient_noise_has_its_size_and_leaves_the_value():
    task, plain = quadratic.quadratic_task(3, noise=0.5), quadratic.quadratic_task(3)
    rows = batch({"a": np.ones((1, 3), np.float32), "o": np.zeros((1, 3), np.float32)})
    params = task.init(jax.random.key(0))
    draws = jax.vmap(lambda k: jax.grad(lambda p: task.loss(p, rows, k)[0])(params)["x"])(jax.random.split(jax.random.key(1),
                                                                                                           4000))
    np.testing.assert_allclose(draws.std(0), 0.5, rtol=0.05)
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.03)
    assert task.loss(params, rows, jax.random.key(2))[0] == plain.loss(params, rows, None)[0]
    off = {**rows, "mask": jnp.zeros(1, bool)}
    assert not jax.grad(lambda p: task.loss(p, off, jax.random.key(2))[0])(params)["x"].any()
