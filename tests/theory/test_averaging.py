"""Local SGD on quadratics, where every claim is linear algebra: fixed points, rates and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import registry
from fedjax_lab.data.quadratic import optimum, quadratic_task
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.types import Population, Stream

DIM = 12


def people(a, o, rows):
    """Clients with curvatures a [N, DIM] and minima o [N, DIM], and so many equal rows each."""
    a, o = (np.repeat(np.asarray(x, np.float32), rows, 0) for x in (a, o))
    size = np.asarray(rows, np.int32)
    stream = Stream({"a": a, "o": o}, (np.cumsum(size) - size).astype(np.int32), size)
    return Population(stream, stream, np.zeros((len(rows), 0), np.float32))


def fedavg(population, cohort=None, noise=0.0, start=3.0, length=1, **options):
    """Rounds from x = start: a function (rounds, clock=0, state=None) -> (x, state)."""
    task = quadratic_task(DIM, noise=noise, start=start)
    method = registry.make("fedavg", task, **options)
    sim = sync.build(
        task, method, population, uniform(population.clients, cohort or population.clients), mesh=mesh.make(1), length=length
    )

    def run(rounds, clock=0, state=None):
        state = sim.init(sim.world, jax.random.key(0)) if state is None else state
        state, _ = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(rounds))
        return np.asarray(state.server["x"], np.float64), state

    return run


def ragged(clients=8):
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(-1, 1, (clients, DIM))), 3 * rng.normal(size=(clients, DIM)), rng.integers(1, 6, clients)


def fixed_point(a, o, weights, shrink):
    """The x that the weighted mean of the local maps x -> o + shrink (x - o) leaves alone."""
    pull = weights[:, None] * (1 - shrink)
    return (pull * o).sum(0) / pull.sum(0)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("steps", [1, 5])
def test_full_participation_converges_to_the_fixed_point_of_local_descent(weighting, steps):
    a, o, rows = ragged()
    x, _ = fedavg(people(a, o, rows), lr=0.2, local_steps=steps, batch_size="full", weighting=weighting, length=400)(400)
    weights = rows / rows.sum() if weighting == "examples" else np.full(len(rows), 1 / len(rows))
    np.testing.assert_allclose(x, fixed_point(a, o, weights, (1 - 0.2 * a) ** steps), rtol=1e-4, atol=1e-5)
    best = optimum({"a": a, "o": o}, weights)
    if steps == 1:  # one step is gradient descent on the weighted objective
        np.testing.assert_allclose(x, best, rtol=1e-4, atol=1e-5)
    else:  # several drift away from its minimum
        assert np.abs(x - best).max() > 0.1


def test_one_full_step_is_gradient_descent_bit_by_bit():
    """All numbers are dyadic, and weights powers of two: nothing rounds."""
    rng = np.random.default_rng(1)
    a, o = rng.choice([0.5, 1.0, 2.0], (8, DIM)), rng.integers(-4, 5, (8, DIM))
    rows = np.array([1, 1, 2, 4, 2, 2, 2, 2])  # 16 in all
    x, run = np.full(DIM, 3.0), fedavg(people(a, o, rows), lr=0.25, local_steps=1, batch_size="full", length=3)
    for t in range(3):
        x = x - 0.25 * (rows[:, None] * a * (x - o)).sum(0) / 16
        np.testing.assert_array_equal(run(t + 1)[0], x)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_distance_shrinks_by_the_documented_rate(steps):
    """Every round multiplies it by the weighted mean of (1 - lr a)^K: 1 - lr mu where K = 1."""
    a, o, rows = ragged()
    run, weights = fedavg(people(a, o, rows), lr=0.1, local_steps=steps, batch_size="full", length=3), rows / rows.sum()
    goal = fixed_point(a, o, weights, (1 - 0.1 * a) ** steps)
    near, far = (run(t)[0] - goal for t in (3, 2))
    rate = (weights[:, None] * (1 - 0.1 * a) ** steps).sum(0)
    np.testing.assert_allclose(near / far, rate, rtol=2e-4)
    if steps == 1:
        np.testing.assert_allclose(rate, 1 - 0.1 * (weights[:, None] * a).sum(0))


def test_a_cohort_is_an_unbiased_sample_of_everybody():
    """With equal sizes, the mean next model over many rounds' cohorts is the next model of full participation."""
    a, o, _ = ragged()
    rows, options = np.ones(8, int), {"lr": 0.2, "local_steps": 2, "batch_size": "full"}
    everybody, _ = fedavg(people(a, o, rows), **options)(1)
    run, moved = fedavg(people(a, o, rows), cohort=3, **options), []
    for clock in range(600):
        moved.append(run(1, clock)[0])
    deviation = np.std(moved, 0) / np.sqrt(600)
    assert (np.abs(np.mean(moved, 0) - everybody) < 4.5 * deviation).all()
    local = o + (1 - 0.2 * a) ** 2 * (3 - o)  # variance of a mean without replacement: (1 - S/N) / S of the clients' own
    np.testing.assert_allclose(np.var(moved, 0), local.var(0, ddof=1) * (1 - 3 / 8) / 3, rtol=0.35)


def test_averaging_divides_the_noise_by_the_cohort():
    """One noisy step a round around the optimum: variance lr^2 s^2 / (N (1 - (1 - lr)^2)) where curvatures are one."""
    lr, noise, clients = 0.5, 2.0, 4
    run = fedavg(
        people(np.ones((clients, DIM)), np.zeros((clients, DIM)), np.ones(clients, int)),
        noise=noise,
        start=0.0,
        lr=lr,
        local_steps=1,
        batch_size="full",
        length=8,
    )
    x, state = run(8)
    seen = []
    for t in range(1, 300):
        x, state = run(8, 8 * t, state)
        seen.append(x)
    assert np.mean(np.square(seen)) == pytest.approx(lr**2 * noise**2 / clients / (1 - (1 - lr) ** 2), rel=0.12)
    assert np.abs(np.mean(seen)) < 0.1
