from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.fixture(scope="module")
def fedavg():
    return bench.path("fedavg")


@pytest.mark.parametrize("form", ["heavy_ball", "ema"])
def test_without_momentum_it_is_fedavg(fedavg, form):
    np.testing.assert_array_equal(bench.path("fedavgm", beta=0.0, form=form, nesterov=form == "ema"), fedavg)


@pytest.mark.full
def test_the_forms_differ_by_one_minus_beta(fedavg):
    heavy, ema = (bench.path("fedavgm", beta=0.75, form=form, server_lr=lr) for form, lr in (("heavy_ball", 0.5), ("ema", 2.0)))
    np.testing.assert_allclose(heavy, ema, rtol=1e-6)
    assert np.abs(heavy - fedavg).max() > 0.01


@pytest.mark.full
def test_momentum_is_the_decayed_sum_of_changes():
    """x_1 - x_0 = m_1 and x_2 - x_1 = m_2 = beta m_1 + u_2."""
    (one, _), (two, _) = (bench.run(bench.make("fedavgm", beta=0.5), rounds=r) for r in (1, 2))
    np.testing.assert_allclose(one.server.server["x"] - 1, one.server.memory.m["x"], rtol=1e-5)
    np.testing.assert_allclose(two.server.server["x"] - one.server.server["x"], two.server.memory.m["x"], rtol=1e-4)


def test_nobody_with_examples_lets_momentum_coast():
    state, _ = bench.run(bench.make("fedavgm"), bench.population((0, 0, 3)), cohort=bench.always(0, 1), rounds=2)
    assert state.server.server["x"].tolist() == [1.0] * bench.DIM
