from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.local import batches
from fedjax_lab.methods.optimization.fednova import _travel
from fedjax_lab.registry import training


@pytest.mark.parametrize("optimizer,mu", [("sgd", 0.0), ("momentum:0.8", 0.0), ("sgd", 2.0)])
def test_travel_is_the_closed_form(optimizer, mu):
    lr, steps, rho = 0.05, 7, 0.8
    work = training(lr=lr, local_steps=steps, batch_size="full", client_optimizer=optimizer)
    plan = batches(jax.random.key(0), bench.client(bench.population(), 0), work)
    expected = steps
    if optimizer != "sgd":
        expected = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    elif mu:
        expected = (1 - (1 - lr * mu) ** steps) / (lr * mu)
    np.testing.assert_allclose(_travel(plan, work, mu), expected, rtol=1e-5)


def test_travel_is_the_sum_of_the_weights_of_the_gradients():
    """||a||_1 for momentum and a proximal term together: the weights are the derivatives by each gradient."""
    lr, rho, mu, steps = 0.1, 0.5, 1.5, 6

    def displacement(gradients):
        y, m = 0.0, 0.0
        for g in gradients:
            m = rho * m + g + mu * y
            y = y - lr * m
        return -y / lr

    weights = jax.grad(displacement)(jnp.zeros(steps))
    work = training(lr=lr, local_steps=steps, batch_size="full", client_optimizer=f"momentum:{rho}")
    plan = batches(jax.random.key(0), bench.client(bench.population(), 0), work)
    np.testing.assert_allclose(_travel(plan, work, mu), weights.sum(), rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["sgd", "momentum:0.8"])
def test_equal_steps_are_fedavg(optimizer):
    options = {"cohort": bench.rota(6, 3, (3,)), "client_optimizer": optimizer}
    np.testing.assert_allclose(bench.path("fednova", **options), bench.path("fedavg", **options), rtol=1e-5)


@pytest.mark.full
def test_the_fixed_point_does_not_depend_on_the_steps():
    people, unequal, long = bench.population(), bench.rota(6, 6, (1, 9, 2, 7, 3, 5)), {"rounds": 1500, "lr": 0.004, "local_steps": 9}
    best = bench.optimum(people)
    fedavg, fednova = (np.linalg.norm(bench.path(name, people, cohort=unequal, **long) - best) for name in ("fedavg", "fednova"))
    assert fednova < fedavg / 5


@pytest.mark.full
def test_options_change_the_step():
    norm, steps = (bench.path("fednova", tau=tau, client_optimizer="momentum:0.8", rounds=1) - 1 for tau in ("norm", "steps"))
    assert (np.abs(norm) > np.abs(steps)).all()
    np.testing.assert_allclose(bench.path("fednova", server_lr=0.5, rounds=1), 1 + 0.5 * (bench.path("fednova", rounds=1) - 1), rtol=1e-5)


def test_it_refuses_what_is_not_linear():
    with pytest.raises(ValueError, match="'fednova' refuses client_optimizer"):
        bench.make("fednova", client_optimizer="adam")
