from __future__ import annotations

import bench
import numpy as np
import pytest

EVEN = {"cohort": bench.rota(6, 3, (4,))}
ETA_K = 0.05 * 4


@pytest.mark.full
@pytest.mark.parametrize("name", ["fedavg-m", "fedavg-m-vr"])
def test_without_momentum_it_is_fedavg(name):
    for server_lr, as_average in ((ETA_K, 1.0), (0.1, 0.1 / ETA_K)):
        m = bench.path(name, beta=1.0, server_lr=server_lr, **EVEN)
        np.testing.assert_allclose(m, bench.path("fedavg", weighting="uniform", server_lr=as_average, **EVEN), rtol=1e-5)


@pytest.mark.full
def test_the_default_server_rate_averages_the_models():
    np.testing.assert_allclose(bench.path("fedavg-m", **EVEN), bench.path("fedavg-m", server_lr=ETA_K, **EVEN), rtol=1e-5)


@pytest.mark.full
def test_the_first_direction_is_all_clients_mean_gradient():
    people = bench.population()
    a, o = (people.train.examples[k] for k in "ao")
    owner = np.repeat(np.arange(6), people.train.size)
    first = np.mean([(a * (1 - o))[owner == i].mean(0) for i in range(6)], 0)
    for options in ({}, {"batch_size": 2}):
        method = bench.make("fedavg-m", start="gradient", **options)
        state, _ = bench.run(method._replace(phases=method.phases[:1]), people, rounds=2)  # only the exchange with everyone
        np.testing.assert_allclose(state.server.g["x"], first, rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name,scale", [("fedavg-m", 0.5), ("fedavg-m-vr", 1.0)])
def test_the_fixed_point_is_that_of_fedavg(name, scale):
    """FedAvg-M's with lr beta, FedAvg-M-VR's with the same lr, whatever beta."""
    options = {"rounds": 600, "cohort": bench.rota(6, 6, (4,))}
    expected = bench.path("fedavg", weighting="uniform", lr=0.1 * scale, **options)
    np.testing.assert_allclose(bench.path(name, beta=0.5, lr=0.1, **options), expected, rtol=1e-4)


@pytest.mark.full
def test_one_client_with_one_step_is_storm():
    """Without noise the recursion keeps g at the gradient, so that x descends by server_lr, whatever lr and beta."""
    options = {"cohort": 1, "local_steps": 1, "rounds": 6}
    one = bench.population((5,))
    np.testing.assert_allclose(bench.path("fedavg-m-vr", one, beta=0.3, lr=0.001, server_lr=0.2, **options), bench.path("fedavg", one, lr=0.2, **options), rtol=1e-3)
    late = bench.path("fedavg-m-vr", one, beta=0.3, lr=0.001, server_lr=0.2, start="zero", **options)
    assert np.abs(late - bench.path("fedavg", one, lr=0.2, **options)).max() > 0.01
