from __future__ import annotations

import bench
import jax
import numpy as np
import pytest
from test_fedamd import gradients
from test_fedpage import descent

from fedjax_lab import config, run

UNEQUAL = bench.rota(6, 6, (7, 2, 11, 1, 4))
RUN = {"method": "fedlin", "task": "quadratic_quadratic:clients=6", "rounds": 1, "options": {"batch_size": "full"}}


def test_one_step_is_gradient_descent():
    seen = bench.history(bench.make("fedlin", lr=0.2, local_steps=1), segments=(1,) * 4, cohort=6)
    for (state, record), x in zip(seen, descent(4, 0.2), strict=True):
        np.testing.assert_allclose(state.server.params["x"], x, rtol=1e-5)
        assert record.rounds["bytes_up"][0].tolist() == record.rounds["bytes_down"][0].tolist() == [24] * 6


@pytest.mark.full
def test_it_reaches_the_optimum_linearly_whatever_the_steps():
    best = bench.optimum(bench.population(), "uniform")
    seen = bench.history(bench.make("fedlin", lr=0.3, local_steps=20), segments=(5, 5, 5, 200), cohort=UNEQUAL)
    far = [np.linalg.norm(state.server.params["x"] - best) for state, _ in seen]
    rates = np.array(far[1:3]) / far[:2]
    assert (rates < 0.7).all() and abs(rates[1] - rates[0]) < 0.2 and far[3] < 1e-5
    x = bench.path("fedavg", lr=0.03, local_steps=20, weighting="uniform", cohort=UNEQUAL, rounds=300)
    assert np.linalg.norm(x - best) > 0.02


def test_what_the_uplink_leaves_out_is_remembered():
    (state, record), = bench.history(bench.make("fedlin", up_share=0.4), segments=(1,), cohort=6)  # one of three entries
    rows = np.concatenate([np.asarray(row).reshape(6, -1) for row in jax.tree.leaves(state.wires)], 1)
    np.testing.assert_allclose(state.server.g["x"] + rows.mean(0), gradients(1.0).mean(0), rtol=1e-5)
    assert (np.count_nonzero(rows, axis=1) == 2).all() and record.rounds["bytes_up"][0].tolist() == [5 + 12] * 6


def test_with_a_sparse_downlink_it_still_reaches_the_optimum():
    best = bench.optimum(bench.population(), "uniform")
    (first, record), (last, _) = bench.history(bench.make("fedlin", lr=0.1, down_share=0.4), segments=(1, 600), cohort=6)
    assert np.count_nonzero(first.server.g["x"]) == 1 and record.rounds["bytes_down"][0].tolist() == [12 + 5] * 6
    np.testing.assert_allclose(last.server.params["x"], best, atol=1e-4)


def test_runs_refuse_partial_participation():
    for more in ({"cohort": 4}, {"cohort": 6, "participation": "bernoulli:0.5"}):
        with pytest.raises(ValueError, match="fedlin.*all clients") as error:
            run.prepare(config.make({**RUN, **more}))
        assert "\n" not in str(error.value)
    assert run.prepare(config.make({**RUN, "cohort": 6})).simulation.plan["cohort"] == 6
