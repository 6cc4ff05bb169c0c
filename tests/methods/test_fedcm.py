from __future__ import annotations

import bench
import numpy as np
import pytest

EVEN = {"cohort": bench.rota(6, 3, (4,))}  # four steps each


def test_with_the_own_gradient_alone_it_is_fedavg():
    np.testing.assert_allclose(bench.path("fedcm", alpha=1.0), bench.path("fedavg", weighting="uniform"), rtol=1e-6)


@pytest.mark.full
def test_it_is_fedavg_m_in_other_units():
    cm, m = bench.path("fedcm", alpha=0.3, server_lr=0.5, **EVEN), bench.path("fedavg-m", beta=0.3, server_lr=0.5 * 0.05 * 4, **EVEN)
    np.testing.assert_allclose(cm, m, rtol=1e-5)
    assert np.abs(cm - bench.path("fedcm", alpha=1.0, server_lr=0.5, **EVEN)).max() > 0.01


@pytest.mark.full
def test_g_is_the_mean_direction_whatever_the_steps():
    state, _ = bench.run(bench.make("fedcm", local_steps=1), rounds=1, cohort=6)
    np.testing.assert_allclose(state.server.g["x"], (1 - state.server.params["x"]) / 0.05, rtol=1e-4)
    same = bench.population(alike=True)
    short, long = (bench.run(bench.make("fedcm", lr=1e-5), same, rounds=1, cohort=bench.rota(6, 3, (k,)))[0] for k in (1, 5))
    np.testing.assert_allclose(short.server.g["x"], long.server.g["x"], rtol=1e-2)  # up to rounding of a tiny change


def test_the_second_field_costs_nothing_up_and_d_down():
    _, record = bench.run(bench.make("fedcm"), rounds=1)
    assert record.rounds["bytes_up"][0].tolist() == [12] * 3 and record.rounds["bytes_down"][0].tolist() == [24] * 3


def test_it_needs_plain_sgd():
    with pytest.raises(ValueError, match="'fedcm' refuses client_optimizer"):
        bench.make("fedcm", client_optimizer="adam")
