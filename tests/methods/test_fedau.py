from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
def test_with_everybody_it_is_fedavg():
    for weighting in ("examples", "uniform"):
        np.testing.assert_allclose(bench.path("fedau", weighting=weighting, cohort=6), bench.path("fedavg", weighting=weighting, cohort=6), rtol=1e-5)


def test_weights_are_over_the_population_and_not_divided():
    people = bench.population()
    share = people.train.size[[0, 2, 4]].sum() / people.train.size.sum()
    np.testing.assert_allclose(bench.path("fedau", rounds=1) - 1, share * (bench.path("fedavg", rounds=1) - 1), rtol=1e-5)


@pytest.mark.full
def test_the_record_lives_in_the_row():
    state, _ = bench.run(bench.make("fedau"), rounds=5)  # 0: 024, 1: 135, 2: 240, 3: 351, 4: 402
    assert state.clients.last.tolist() == [4, 3, 4, 3, 4, 3]
    np.testing.assert_allclose(state.clients.mean, [5 / 3, 2, 5 / 3, 2, 5 / 3, 2], rtol=1e-6)
    cut, _ = bench.run(bench.make("fedau", cutoff=1), rounds=5)
    np.testing.assert_allclose(cut.clients.mean, 1)
