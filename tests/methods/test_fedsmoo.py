from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
def test_without_perturbation_it_is_feddyn():
    np.testing.assert_allclose(bench.path("fedsmoo", rho=0.0, lam=0.3), bench.path("feddyn", lam=0.3), rtol=1e-6)


@pytest.mark.full
def test_the_first_step_is_fedspeeds():
    options = {"rounds": 1, "local_steps": 1}
    np.testing.assert_allclose(bench.path("fedsmoo", rho=0.4, **options), bench.path("fedspeed", rho=0.4, **options), rtol=1e-6)
    more = {"rounds": 3}
    assert np.abs(bench.path("fedsmoo", rho=0.4, **more) - bench.path("fedspeed", rho=0.4, **more)).max() > 1e-4


@pytest.mark.full
def test_the_consistent_perturbation_has_length_rho_and_the_absent_keep_their_rows():
    state, _ = bench.run(bench.make("fedsmoo", rho=0.25), rounds=3)
    np.testing.assert_allclose(np.linalg.norm(state.server.s["x"]), 0.25, rtol=1e-5)
    one, _ = bench.run(bench.make("fedsmoo", rho=0.25), rounds=1)
    for row in (one.clients.h["x"], one.clients.mu["x"]):
        assert not np.asarray(row)[[1, 3, 5]].any() and np.asarray(row)[[0, 2, 4]].any()
    direction = np.asarray(one.clients.mu["x"])[[0, 2, 4]].mean(0)
    np.testing.assert_allclose(one.server.s["x"], 0.25 * direction / np.linalg.norm(direction), rtol=1e-5)


def test_a_round_of_nobody_changes_nothing():
    state, _ = bench.run(bench.make("fedsmoo"), bench.population((0, 0, 3)), cohort=bench.always(0, 1), rounds=2)
    assert state.server.params["x"].tolist() == [1.0] * bench.DIM and not state.server.s["x"].any()
