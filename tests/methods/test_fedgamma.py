from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
def test_without_ascent_it_is_scaffold():
    np.testing.assert_array_equal(bench.path("fedgamma", rho=0.0), bench.path("scaffold"))


def test_c_is_the_mean_of_all_c_i():
    state, _ = bench.run(bench.make("fedgamma", rho=0.3), rounds=3)
    np.testing.assert_allclose(state.server.c["x"], np.asarray(state.clients["x"]).mean(0), atol=1e-6)


@pytest.mark.full
def test_the_ascent_pushes_the_first_round_further():
    """On a bowl the ascended gradient is longer."""
    sharp, plain = (np.linalg.norm(bench.path("fedgamma", rho=rho, rounds=1) - 1) for rho in (0.5, 0.0))
    assert sharp > plain
