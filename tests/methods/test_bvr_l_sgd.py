from __future__ import annotations

import itertools

import bench
import numpy as np
import pytest
from test_fedamd import gradients
from test_fedpage import descent


def test_one_step_is_gradient_descent_along_the_gradient_of_all():
    seen = bench.history(bench.make("bvr-l-sgd", stage=3, lr=0.1, local_steps=1), segments=(1,) * 5, cohort=1)
    for (state, _), x in zip(seen, descent(5, 0.1), strict=True):
        np.testing.assert_allclose(state.server.params["x"], x, rtol=1e-5)


@pytest.mark.full
def test_v_is_the_gradient_of_the_mean_objective_and_one_worker_a_round_finds_its_optimum():
    seen = bench.history(bench.make("bvr-l-sgd", stage=4, lr=0.1), segments=(1,) * 6 + (300,), cohort=1)
    for (before, _), (after, record) in itertools.pairwise(seen[:6]):
        x = before.server.params["x"]
        np.testing.assert_allclose(after.server.v["x"], gradients(x).mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(after.server.previous["x"], x)
        assert (record.rounds["all_bytes_up"][0] == 12).all() and record.rounds["bytes_up"][0].tolist() == [12]
    best = bench.optimum(bench.population(), "uniform")
    np.testing.assert_allclose(seen[-1][0].server.params["x"], best, atol=1e-4)
    assert np.linalg.norm(bench.path("fedavg", weighting="uniform", rounds=300, lr=0.1, cohort=1) - best) > 0.1
