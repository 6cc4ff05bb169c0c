from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.types import Aux, Task


def bowl(curvature: float) -> Task:
    """F = L ||x - o||^2 / 2, whatever a is."""

    def loss(params, batch, key):
        each = 0.5 * curvature * jnp.sum((params["x"] - batch["o"]) ** 2, -1)
        return jnp.where(batch["mask"], each, 0).sum() / jnp.maximum(batch["mask"].sum(), 1), Aux()

    return bench.TASK._replace(loss=loss)


def last_eta(task, steps, **options):
    method = bench.make("delta-sgd", task, local_steps=steps, **options)
    result = method.local(jax.random.key(0), {"model": {"x": jnp.ones(3)}}, (), bench.client(bench.population(), 3))
    return float(result.metrics["eta"])


@pytest.mark.parametrize("curvature", [0.5, 3.0, 40.0])
def test_the_step_is_one_over_the_curvature_where_the_cap_allows(curvature):
    eta, theta = 0.2, 1.0
    for k in range(3):  # before the bowl's minimum is met up to rounding
        cap = (1 + 0.1 * theta) ** 0.5 * eta
        new = cap if k == 0 else min(1 / curvature, cap)
        eta, theta = new, new / eta
        np.testing.assert_allclose(last_eta(bowl(curvature), k + 1), eta, rtol=1e-3)


def test_a_constant_gradient_lets_the_step_grow_by_the_cap():
    def slope(params, batch, key):
        return jnp.sum(params["x"]), Aux()

    eta, theta = 0.1, 0.5
    for k in range(5):
        eta, theta = (1 + 0.3 * theta) ** 0.5 * eta, (1 + 0.3 * theta) ** 0.5
        np.testing.assert_allclose(last_eta(bench.TASK._replace(loss=slope), k + 1, eta0=0.1, theta0=0.5, delta=0.3), eta, rtol=1e-5)


def test_where_all_curvature_is_one_it_is_fedavg_with_the_right_rate():
    task, options = bowl(4.0), {"rounds": 3, "cohort": bench.rota(6, 3, (5,))}
    tuned = bench.path("delta-sgd", task=task, eta0=0.25, delta=0.0, **options)
    np.testing.assert_allclose(tuned, bench.path("fedavg", task=task, weighting="uniform", lr=0.25, **options), rtol=1e-5)


def test_it_runs_noisy_and_starts_anew_in_every_round():
    assert np.isfinite(bench.path("delta-sgd", task=bench.NOISY, rounds=20)).all()
    assert bench.make("delta-sgd").init_client(None, None, None) == ()
    with pytest.raises(ValueError, match="which the step rule replaces"):
        bench.make("delta-sgd", client_optimizer="adam")
