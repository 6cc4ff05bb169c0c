from __future__ import annotations

import bench
import numpy as np
import pytest
from test_fedamd import gradients


def descent(rounds, rate):
    """The iterates of gradient descent on the bench's mean objective."""
    x, path = np.ones(bench.DIM), []
    for _ in range(rounds):
        x = x - rate * gradients(x).mean(0)
        path.append(x)
    return path


@pytest.mark.full
def test_one_step_of_everybody_is_gradient_descent_in_both_kinds_of_rounds():
    seen = bench.history(bench.make("fedpage", p=0.5, lr=0.03, server_lr=0.1, local_steps=1), segments=(1,) * 6, cohort=6)
    whole = [bool(record.rounds["all_bytes_up"].any()) for _, record in seen]
    assert whole[0] and 1 < sum(whole) < 6
    for (state, record), x, full in zip(seen, descent(6, 0.1), whole, strict=True):
        np.testing.assert_allclose(state.server.params["x"], x, rtol=1e-5)
        assert record.rounds["bytes_up"].any() != full and record.rounds["loss"][0] > 0


@pytest.mark.full
def test_g_is_the_mean_direction_of_the_clients():
    (before, _), (after, record) = bench.history(bench.make("fedpage", p=0.0, lr=0.02), segments=(2, 1))
    moved = after.server.params["x"] - before.server.params["x"]
    np.testing.assert_allclose(moved, -0.02 * np.mean([4, 3, 5]) * after.server.g["x"], rtol=1e-4)  # steps of clients 0, 2, 4
    np.testing.assert_array_equal(after.server.previous["x"], before.server.params["x"])
    assert sorted(record.rounds["ids"][0]) == [0, 2, 4] and record.rounds["bytes_down"][0].tolist() == [36] * 3


@pytest.mark.full
def test_it_reaches_the_optimum_with_half_of_the_clients():
    best = bench.optimum(bench.population(), "uniform")
    np.testing.assert_allclose(bench.path("fedpage", p=0.3, rounds=500, lr=0.05), best, atol=1e-4)
