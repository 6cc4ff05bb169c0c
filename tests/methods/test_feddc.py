from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
def test_the_first_round_is_feddyn():
    """Before anything is remembered only the penalty acts."""
    np.testing.assert_array_equal(bench.path("feddc", alpha=0.3, rounds=1), bench.path("feddyn", lam=0.3, rounds=1))
    assert np.abs(bench.path("feddc", alpha=0.3) - bench.path("feddyn", lam=0.3)).max() > 1e-3


@pytest.mark.full
def test_drifts_and_control_variates():
    state, _ = bench.run(bench.make("feddc"), rounds=4)
    np.testing.assert_allclose(state.server.h["x"], np.asarray(state.clients.h["x"]).mean(0), atol=1e-6)
    np.testing.assert_allclose(state.server.c["x"], np.asarray(state.clients.c["x"]).mean(0), atol=1e-5)
    one, _ = bench.run(bench.make("feddc"), rounds=1)
    steps, here = np.array([4, 3, 5]), [0, 2, 4]  # rota's allowances of clients 0, 2, 4
    drift = np.asarray(one.clients.h["x"])[here]
    np.testing.assert_allclose(np.asarray(one.clients.c["x"])[here], -drift / (0.05 * steps[:, None]), rtol=1e-5)
    assert not np.asarray(one.clients.c["x"])[[1, 3, 5]].any()
