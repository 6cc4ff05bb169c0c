from __future__ import annotations

import bench
import numpy as np
import pytest


def test_without_slow_momentum_it_is_local_sgd():
    np.testing.assert_allclose(bench.path("slowmo", beta=0.0), bench.path("fedavg", weighting="uniform"), rtol=1e-6)


@pytest.mark.full
def test_it_is_fedavgm_with_momentum_in_other_units():
    slow = bench.path("slowmo", beta=0.6, alpha=0.5)
    np.testing.assert_allclose(slow, bench.path("fedavgm", beta=0.6, server_lr=0.5, weighting="uniform"), rtol=1e-5)


@pytest.mark.full
def test_momentum_is_in_units_of_gradients():
    """A step of one tiny rate and of twice the rate leave the same momentum."""
    (a, _), (b, _) = (bench.run(bench.make("slowmo", lr=lr, local_steps=1), rounds=1, cohort=6) for lr in (0.01, 0.02))
    np.testing.assert_allclose(a.server.m["x"], b.server.m["x"], rtol=1e-4)
