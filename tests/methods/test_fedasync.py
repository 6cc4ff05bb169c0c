from __future__ import annotations

import bench
import jax
import numpy as np
import pytest
from clock import rolled

from fedjax_lab.parts.staleness import worth

PLAIN = {"alpha": 1.0, "rho": 0.0, "staleness": "constant"}
LATE = rolled("buffered:1,law=fixed:1/2/4", rounds=9)


@pytest.mark.full
def test_with_one_client_at_a_time_it_is_sequential_local_sgd():
    one = rolled("buffered:1,law=fixed", cohort=1, rounds=6)
    people, x = bench.population(), np.ones(bench.DIM)
    order = np.asarray(one.init(jax.random.key(0), None).ids)[:, 0]
    for i in order:
        a, o = (people.train.examples[k][people.train.offset[i]:][: people.train.size[i]].astype(np.float64) for k in "ao")
        for _ in range(5):
            x = x - 0.05 * (a * (x - o)).mean(0)
    assert len(set(order.tolist())) == 3
    for variant in ("mixing", "delta"):
        np.testing.assert_allclose(bench.path("fedasync", cohort=one, rounds=6, variant=variant, **PLAIN), x, rtol=1e-5)


@pytest.mark.full
def test_a_fresh_upload_of_one_client_is_fedavg():
    alone = {"cohort": bench.rota(6, 1), "rounds": 3}
    np.testing.assert_allclose(bench.path("fedasync", **PLAIN, **alone), bench.path("fedavg", weighting="uniform", **alone), rtol=1e-6)


@pytest.mark.full
def test_mixing_pulls_back_towards_the_old_model_and_delta_does_not():
    mixing, delta = (bench.path("fedasync", cohort=LATE, rounds=9, variant=v) for v in ("mixing", "delta"))
    assert np.abs(mixing - delta).max() > 0.05
    still = [bench.path("fedasync", cohort=LATE, rounds=9, variant=v, lr=0.0) for v in ("mixing", "delta")]
    np.testing.assert_array_equal(still, np.ones((2, bench.DIM)))


def test_the_model_it_started_from_costs_nothing():
    _, record = bench.run(bench.make("fedasync"), rounds=2, cohort=LATE)
    assert (np.asarray(record.rounds["bytes_up"]) == 12).all()


@pytest.mark.parametrize("form, a, b, expected", [
    ("constant", 0.5, 4, [1, 1, 1]), ("polynomial", 0.5, 4, [1, 6**-0.5, 10**-0.5]), ("hinge", 10, 4, [1, 1 / 11, 1 / 51])])
def test_staleness_functions(form, a, b, expected):
    np.testing.assert_allclose(worth(form, np.array([0, 5, 9]), a, b), expected, rtol=1e-6)
    assert worth(form, 4, a, 4.0) == (1 if form != "polynomial" else pytest.approx(5**-0.5))
