from __future__ import annotations

import bench
import numpy as np
import pytest
from clock import rolled

SPEEDS = (1, 2, 4, 1, 2, 4)


def weighted_optimum(weights):
    """The minimum of sum_i w_i F_i."""
    people = bench.population()
    size, examples = people.train.size, people.train.examples
    w = np.repeat(np.asarray(weights) / size, size)[:, None]
    return (w * examples["a"] * examples["o"]).sum(0) / (w * examples["a"]).sum(0)


def settled(schedule, updates, lr, weights, period):
    """The mean of the models over a period of the schedule, after long training with rate lr; and extrapolated to a rate of zero."""
    def mean(lr):
        method = bench.make("fedfix", lr=lr, local_steps=1, weights=weights)
        segments = (updates, *(1,) * period)
        return np.mean([s.server.params["x"] for s, _ in bench.history(method, segments=segments, cohort=schedule)[1:]], 0, dtype=np.float64)

    whole, half = mean(lr), mean(lr / 2)
    return 2 * half - whole


@pytest.mark.full
def test_a_tick_as_long_as_the_slowest_is_fedavg_to_the_bit():
    ticks, everybody = rolled("ticks:1,law=linear:80"), bench.always(*range(6))
    states = [bench.run(bench.make(name), cohort=cohort)[0].server for name, cohort in (("fedfix", ticks), ("fedavg", everybody))]
    np.testing.assert_array_equal(states[0].params["x"], states[1]["x"])


@pytest.mark.full
@pytest.mark.parametrize("schedule, period", [("buffered:1,law=fixed:1/2/4", 14), ("buffered:3,law=fixed:1/2/4", 14), ("ticks:1.5,law=fixed:1/2/4", 6)])
def test_by_weight_it_settles_at_the_common_optimum(schedule, period):
    updates = 42 * 40
    found = settled(rolled(schedule, rounds=updates + period, steps=1), updates, 0.02, "weight", period)
    np.testing.assert_allclose(found, bench.optimum(bench.population()), atol=2e-3)


@pytest.mark.full
def test_identical_weights_favor_the_fast():
    updates = 42 * 40
    found = settled(rolled("buffered:1,law=fixed:1/2/4", rounds=updates + 14, steps=1), updates, 0.02, "identical", 14)
    np.testing.assert_allclose(found, weighted_optimum(1 / np.array(SPEEDS)), atol=2e-3)
    assert np.abs(found - bench.optimum(bench.population())).max() > 0.1


@pytest.mark.full
def test_identical_weights_of_a_buffer_favor_who_is_in_it_most():
    updates, text, period = 42 * 40, "buffered:3,law=fixed:1/2/4", 4  # four updates consume twelve uploads, of the fast three each
    schedule = rolled(text, rounds=updates + period, steps=1)
    found = settled(schedule, updates, 0.02, "identical", period)
    ids = np.asarray(schedule.init(None, None).ids)[updates:]
    assert np.bincount(ids.ravel()).tolist() == [3, 2, 1, 3, 2, 1]
    np.testing.assert_allclose(found, weighted_optimum(np.bincount(ids.ravel(), minlength=6)), atol=2e-3)
