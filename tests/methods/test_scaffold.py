from __future__ import annotations

import bench
import numpy as np
import pytest


@pytest.mark.full
@pytest.mark.parametrize("option", ["I", "II"])
def test_c_is_the_mean_of_all_c_i_and_absent_clients_keep_theirs(option):
    state, _ = bench.run(bench.make("scaffold", option=option), rounds=3)
    np.testing.assert_allclose(state.server.c["x"], np.asarray(state.clients["x"]).mean(0), atol=1e-6)
    one, _ = bench.run(bench.make("scaffold", option=option), rounds=1)  # clients 0, 2, 4 took part
    assert not np.asarray(one.clients["x"])[[1, 3, 5]].any() and np.asarray(one.clients["x"])[[0, 2, 4]].all()


@pytest.mark.full
def test_one_step_of_everybody_is_sgd():
    options = {"cohort": 6, "local_steps": 1, "rounds": 5}
    np.testing.assert_allclose(bench.path("scaffold", **options), bench.path("fedavg", weighting="uniform", **options), rtol=1e-5)


@pytest.mark.full
def test_the_first_round_is_fedavg():
    np.testing.assert_array_equal(bench.path("scaffold", rounds=1), bench.path("fedavg", weighting="uniform", rounds=1))


@pytest.mark.full
def test_option_one_holds_full_gradients():
    people = bench.population()
    a, o = (people.train.examples[k] for k in "ao")
    at = np.repeat(np.arange(6), people.train.size)
    full = np.stack([(a * (1 - o))[at == i].mean(0) for i in range(6)])
    for batch_size in ("full", 2):
        state, _ = bench.run(bench.make("scaffold", option="I", batch_size=batch_size, local_steps=2), rounds=1, cohort=6)
        np.testing.assert_allclose(state.clients["x"], full, rtol=1e-5)


@pytest.mark.parametrize("option", ["I", "II"])
def test_it_reaches_the_optimum_with_half_of_the_clients(option):
    people = bench.population()
    x = bench.path("scaffold", people, option=option, rounds=800, lr=0.05)
    np.testing.assert_allclose(x, bench.optimum(people, "uniform"), atol=1e-5)
    fedavg = bench.path("fedavg", people, weighting="uniform", rounds=800, lr=0.05)
    assert np.linalg.norm(fedavg - bench.optimum(people, "uniform")) > 0.1


def test_option_two_needs_plain_sgd():
    with pytest.raises(ValueError, match="'scaffold' option II refuses client_optimizer"):
        bench.make("scaffold", client_optimizer="momentum:0.9")
    assert bench.make("scaffold", client_optimizer="momentum:0.9", option="I").info.stateful


def test_clients_without_examples_change_nothing():
    state, _ = bench.run(bench.make("scaffold"), bench.population((4, 0, 3, 6, 0, 5)), rounds=3, cohort=6)
    assert np.isfinite(state.server.params["x"]).all() and not np.asarray(state.clients["x"])[[1, 4]].any()
