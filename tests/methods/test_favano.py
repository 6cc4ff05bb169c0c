from __future__ import annotations

import bench
import jax
import numpy as np
import pytest
from clock import rolled

from fedjax_lab.events import Arrival, Update
from fedjax_lab.parts.schedules.replay import replay

EVERYBODY = replay([Update(1.0, tuple(Arrival(i, 0) for i in range(6)))])


@pytest.mark.full
def test_all_clients_polled_without_scaling_are_averaged_with_the_old_model():
    one = bench.path("favano", cohort=EVERYBODY, rounds=1)
    mean = bench.path("fedavg", weighting="uniform", cohort=bench.always(*range(6)), rounds=1)
    np.testing.assert_allclose(one, (1 + 6 * mean) / 7, rtol=1e-6)


@pytest.mark.full
def test_who_did_nothing_sends_the_model_it_was_sent():
    updates = [Update(1.0, (Arrival(0, 0), Arrival(1, 0))), Update(2.0, (Arrival(2, 0, 0), Arrival(3, 0, 0, 7.0)))]
    first, second = (bench.path("favano", cohort=replay(updates[:n]), rounds=n) for n in (1, 2))
    np.testing.assert_allclose(second, (first + 2 * np.ones(bench.DIM)) / 3, rtol=1e-6)


def test_fast_and_slow_clients_move_the_model_alike():
    """One gradient g everywhere: over the run the mean of u_i - a_i is -lr g for each client, and each upload is sized by its steps."""
    people = bench.population(alike=True)
    polled = rolled("polling:4,law=geometric:0.9/0.1", cohort=3, rounds=60, clients=6, steps=5)
    table = polled.init(jax.random.key(0), None)
    factor, steps = np.asarray(table.factor), np.minimum(table.allowance, 5)
    for i in range(6):
        mine = np.asarray(table.ids) == i
        assert abs(np.mean((factor * steps)[mine]) - 1) < 1e-6
    state, record = bench.run(bench.make("favano", lr=1e-4), people, rounds=1, cohort=polled)
    a, o = (people.train.examples[k][0].astype(np.float64) for k in "ao")
    moved = -1e-4 * (a * (1 - o)) * (factor * steps)[0].sum() / 4  # s + 1
    np.testing.assert_allclose(np.asarray(state.server["x"], np.float64) - 1, moved, rtol=2e-2, atol=1e-7)
    assert (np.asarray(record.rounds["bytes_up"]) == 12).all()
