from __future__ import annotations

import bench
import numpy as np
import pytest

PEOPLE = bench.population()
OWNER = np.repeat(np.arange(6), PEOPLE.train.size)
A, O = (PEOPLE.train.examples[k] for k in "ao")
GRADIENTS = np.stack([(A * (1 - O))[OWNER == i].mean(0) for i in range(6)])
CURVATURES = np.stack([A[OWNER == i].mean(0) for i in range(6)])


@pytest.mark.full
@pytest.mark.parametrize("scaling", ["global", "local"])
def test_a_constant_scaling_is_local_sgd(scaling):
    scaled = bench.path("savic", scaling=scaling, alpha=1e4, lr=0.05 * 1e4)
    np.testing.assert_allclose(scaled, bench.path("fedavg", weighting="uniform"), rtol=1e-5)


@pytest.mark.parametrize("rule,beta,expected", [
    pytest.param("adam", 0.9, np.abs(GRADIENTS.mean(0)), marks=pytest.mark.full), ("rmsprop", 0.9, 0.1**0.5 * np.abs(GRADIENTS.mean(0))),
    pytest.param("oasis", 0.9, CURVATURES.mean(0), marks=pytest.mark.full),
])
def test_the_first_scaling(rule, beta, expected):
    state, _ = bench.run(bench.make("savic", rule=rule, beta=beta, alpha=1.0), rounds=1, cohort=6)
    np.testing.assert_allclose(state.server.scaling.d["x"], expected, rtol=1e-4)


def test_own_scalings_stay_with_the_clients():
    state, _ = bench.run(bench.make("savic", scaling="local", rule="adam", alpha=1.0), rounds=1)
    here = [0, 2, 4]
    np.testing.assert_allclose(np.asarray(state.clients.d["x"])[here], np.abs(GRADIENTS[here]), rtol=1e-4)
    assert state.server.scaling == () and not np.asarray(state.clients.d["x"])[[1, 3, 5]].any()


def test_curvature_is_exact_on_a_diagonal_and_stays():
    state, _ = bench.run(bench.make("savic", rule="oasis", beta=0.5, alpha=1.0), rounds=4, cohort=6)
    np.testing.assert_allclose(state.server.scaling.d["x"], CURVATURES.mean(0), rtol=1e-4)


@pytest.mark.full
def test_the_floor():
    low, added = (bench.path("savic", alpha=1e3, floor=f, lr=50.0, rounds=1) for f in ("max", "add"))
    np.testing.assert_allclose(low, added, rtol=1e-2)
    assert np.abs(low - added).max() > 0


@pytest.mark.full
def test_scaling_by_curvature_evens_out_the_coordinates():
    """One step of one client along the gradient over its diagonal curvature goes straight to its minimum."""
    one = bench.population((5,))
    x = bench.path("savic", one, rule="oasis", alpha=1e-3, lr=1.0, local_steps=1, cohort=1, rounds=1)
    np.testing.assert_allclose(x, bench.optimum(one), rtol=1e-4)


@pytest.mark.full
def test_what_is_sent():
    for scaling, up, down in (("global", 24, 36), ("local", 12, 12)):
        _, record = bench.run(bench.make("savic", scaling=scaling), rounds=1)
        assert (record.rounds["bytes_up"][0, 0], record.rounds["bytes_down"][0, 0]) == (up, down)
