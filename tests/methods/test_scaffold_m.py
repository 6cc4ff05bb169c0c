from __future__ import annotations

import bench
import numpy as np
import pytest

EVEN = {"cohort": bench.rota(6, 3, (4,))}
ETA_K = 0.05 * 4


@pytest.mark.parametrize("name", ["scaffold-m", "scaffold-m-vr"])
def test_without_momentum_it_is_scaffold(name):
    m = bench.path(name, beta=1.0, server_lr=0.1, start="zero", **EVEN)
    np.testing.assert_allclose(m, bench.path("scaffold", server_lr=0.1 / ETA_K, **EVEN), rtol=1e-5)


@pytest.mark.parametrize("name,start", [("scaffold-m", "zero"), ("scaffold-m-vr", "zero"), ("scaffold-m-vr", "gradient")])
def test_c_is_the_mean_of_all_c_i(name, start):
    state, _ = bench.run(bench.make(name, start=start), rounds=3)
    np.testing.assert_allclose(state.server.c["x"], np.asarray(state.clients["x"]).mean(0), atol=1e-5)


@pytest.mark.full
def test_one_step_of_everybody_has_no_correction():
    options = {"cohort": 6, "local_steps": 1, "rounds": 5}
    np.testing.assert_allclose(bench.path("scaffold-m", **options), bench.path("fedavg-m", **options), rtol=1e-4)


@pytest.mark.full
def test_alike_clients_have_no_correction():
    people = bench.population(alike=True)
    options = {"cohort": bench.rota(6, 6, (4,))}
    np.testing.assert_allclose(bench.path("scaffold-m-vr", people, **options), bench.path("fedavg-m-vr", people, **options), rtol=1e-4)


@pytest.mark.full
def test_c_i_is_the_mean_of_the_raw_gradients():
    """With a tiny rate the iterates stand still and c_i is the gradient at x^0, momentum or not."""
    people = bench.population()
    a, o = (people.train.examples[k] for k in "ao")
    owner = np.repeat(np.arange(6), people.train.size)
    full = np.stack([(a * (1 - o))[owner == i].mean(0) for i in range(6)])
    for name in ("scaffold-m", "scaffold-m-vr"):
        state, _ = bench.run(bench.make(name, lr=1e-6), rounds=2, cohort=6)
        np.testing.assert_allclose(state.clients["x"], full, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["scaffold-m", "scaffold-m-vr"])
def test_it_reaches_the_optimum_with_half_of_the_clients(name):
    people = bench.population()
    x = bench.path(name, people, beta=0.3, rounds=800, **EVEN)
    np.testing.assert_allclose(x, bench.optimum(people, "uniform"), atol=1e-4)


@pytest.mark.full
def test_what_is_sent():
    sizes = {"fedavg-m": (12, 24), "scaffold-m": (24, 36), "fedavg-m-vr": (12, 36), "scaffold-m-vr": (24, 48)}
    for name, (up, down) in sizes.items():
        _, record = bench.run(bench.make(name), rounds=2)
        assert (record.rounds["bytes_up"][0].tolist(), record.rounds["bytes_down"][0].tolist()) == ([up] * 3, [down] * 3)
        if name.endswith("vr"):  # the first gradients of all six, once
            assert record.rounds["all_bytes_up"].tolist() == record.rounds["all_bytes_down"].tolist() == [[12] * 6, [0] * 6]
