from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
def test_without_the_pull_it_is_fedavg():
    for weighting in ("examples", "uniform"):
        np.testing.assert_array_equal(bench.path("fedprox", mu=0.0, weighting=weighting), bench.path("fedavg", weighting=weighting))


@pytest.mark.full
def test_a_stronger_pull_stays_nearer():
    moved = [np.linalg.norm(bench.path("fedprox", mu=mu, rounds=1) - 1) for mu in (0.0, 1.0, 10.0, 19.0)]
    assert moved == sorted(moved, reverse=True) and moved[-1] < 0.3 * moved[0]


def test_partial_work_of_a_straggler_counts():
    people = bench.population()
    held = bench.path("fedprox", people, rounds=2, cohort=bench.rota(6, 3, (2,)))
    np.testing.assert_array_equal(held, bench.path("fedprox", people, rounds=2, cohort=bench.rota(6, 3, (9,)), local_steps=2))


@pytest.mark.full
def test_it_does_not_reach_the_optimum():
    people = bench.population()
    x = bench.path("fedprox", people, mu=0.1, rounds=400, cohort=6, lr=0.1)
    np.testing.assert_allclose(x, bench.path("fedprox", people, mu=0.1, rounds=800, cohort=6, lr=0.1), rtol=1e-4)
    assert np.linalg.norm(x - bench.optimum(people)) > 0.05
