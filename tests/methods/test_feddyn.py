from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
@pytest.mark.parametrize("off", [{"rho": 0.0}, {"alpha": 0.0}])
def test_fedspeed_without_ascent_is_feddyn_bit_for_bit(off):
    np.testing.assert_array_equal(bench.path("fedspeed", lam=0.3, **off), bench.path("feddyn", lam=0.3, clip=10.0))


@pytest.mark.full
def test_a_loose_clip_is_none():
    np.testing.assert_array_equal(bench.path("feddyn", lam=0.3, clip=1e6), bench.path("feddyn", lam=0.3))
    tight = bench.path("feddyn", lam=0.3, clip=0.1, rounds=1)
    assert np.linalg.norm(tight - 1) <= 0.05 * 5 * 0.1 + 1 / 2 * 0.05 * 5 * 0.1 + 1e-6  # mean_S of steps of length lr clip, and half of it as h


@pytest.mark.full
def test_duals_are_the_sums_of_displacements():
    state, _ = bench.run(bench.make("feddyn"), rounds=1)  # clients 0, 2, 4
    change = np.asarray(state.clients["x"])
    assert not change[[1, 3, 5]].any() and change[[0, 2, 4]].all()
    average = 1 + change[[0, 2, 4]].mean(0)
    np.testing.assert_allclose(state.server.average["x"], average, rtol=1e-6)
    np.testing.assert_allclose(state.server.params["x"], average + change.sum(0) / 6, rtol=1e-6)
    late, _ = bench.run(bench.make("feddyn"), rounds=5)
    np.testing.assert_allclose(late.server.h["x"], np.asarray(late.clients["x"]).mean(0), atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("name,lam", [("feddyn", 0.3), ("feddyn", 3.0), ("fedspeed", 0.3), ("feddc", 0.3), ("fedsmoo", 0.3)])
def test_it_reaches_the_optimum_with_half_of_the_clients(name, lam):
    people = bench.population()
    options = {"feddyn": {}, "fedspeed": {"rho": 0.0}, "fedsmoo": {"rho": 0.0}, "feddc": {}}[name]
    options[{"feddc": "alpha"}.get(name, "lam")] = lam
    x = bench.path(name, people, rounds=1500, cohort=bench.rota(6, 3, (9, 7)), local_steps=9, lr=0.1, **options)
    np.testing.assert_allclose(x, bench.optimum(people, "uniform"), atol=1e-4)


@pytest.mark.full
def test_weighted_objectives_have_the_weighted_optimum():
    people = bench.population()
    x = bench.path("feddyn", people, rounds=1500, cohort=bench.rota(6, 3, (9, 7)), local_steps=9, lr=0.1, lam=0.5, weighting="examples")
    np.testing.assert_allclose(x, bench.optimum(people), atol=1e-4)


@pytest.mark.full
def test_either_model_can_be_evaluated():
    state, _ = bench.run(bench.make("feddyn", evaluate="average"))
    assert bench.make("feddyn", evaluate="average").deploy(state.server) is state.server.average
    assert bench.make("feddyn").deploy(state.server) is state.server.params


@pytest.mark.full
def test_a_round_of_nobody_changes_nothing():
    state, _ = bench.run(bench.make("feddyn"), bench.population((0, 0, 3)), cohort=bench.always(0, 1), rounds=3)
    assert state.server.params["x"].tolist() == [1.0] * bench.DIM and not state.server.h["x"].any()
