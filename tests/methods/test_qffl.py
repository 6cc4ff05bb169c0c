from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_q_zero_is_the_plain_mean():
    np.testing.assert_allclose(bench.path("qffl", q=0.0), bench.path("fedavg", weighting="uniform"), rtol=1e-5)


def test_the_estimated_curvature_is_that_of_the_power_of_the_loss():
    """For F = x^2 / 2 and one step, h is the second derivative of F^(q+1) / (q+1) but for the curvature of F, of which 1 / lr is a bound."""
    people = bench.population()
    for q in (0.5, 2.0):
        method = bench.make("qffl", q=q, local_steps=1)
        x, data = {"x": jnp.ones(3)}, bench.client(people, 3)
        result = method.local(jax.random.key(0), {"model": x}, (), data)
        rows = data.train.whole()
        F, g = jax.value_and_grad(lambda x, rows=rows: bench.TASK.loss(x, rows, None)[0])(x)
        F = float(F)
        square = float(jnp.sum(g["x"] ** 2))
        np.testing.assert_allclose(result.upload["h"], q * F ** (q - 1) * square + F**q / 0.05, rtol=1e-5)
        np.testing.assert_allclose(result.weight["model"] * result.upload["model"]["x"], -(F**q) * g["x"], rtol=1e-4)


@pytest.mark.full
def test_a_larger_power_narrows_the_losses():
    report = {q: bench.run(bench.make("qffl", q=q, local_steps=1), rounds=150, cohort=6)[1].evaluation for q in (0.0, 5.0)}
    assert report[5.0]["client_test_loss_std"] < 0.9 * report[0.0]["client_test_loss_std"]


def test_its_sum_is_its_own():
    with pytest.raises(ValueError, match="'qffl' refuses client_optimizer 'adam'"):
        bench.make("qffl", client_optimizer="adam")
