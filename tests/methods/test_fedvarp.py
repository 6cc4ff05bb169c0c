from __future__ import annotations

import itertools

import bench
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.methods.optimization.fedvarp import Varp
from fedjax_lab.types import Cohort


@pytest.mark.full
def test_with_everybody_it_is_fedavg():
    np.testing.assert_allclose(bench.path("fedvarp", cohort=6), bench.path("fedavg", weighting="uniform", cohort=6), rtol=1e-5)


@pytest.mark.full
def test_the_running_mean_is_the_mean_of_the_rows_and_the_absent_keep_theirs():
    (two, _), (three, _) = (bench.run(bench.make("fedvarp"), rounds=r, eval_clients=2) for r in (2, 3))
    np.testing.assert_allclose(three.server.h["x"], np.asarray(three.clients["x"]).mean(0), atol=1e-6)
    absent = [1, 3, 5]  # rota: round 2 is clients 2, 4, 0
    np.testing.assert_array_equal(np.asarray(three.clients["x"])[absent], np.asarray(two.clients["x"])[absent])


def test_the_step_is_unbiased_over_cohorts():
    rng, method = np.random.default_rng(0), bench.make("fedvarp")
    u, h = rng.normal(size=(2, 5, bench.DIM))
    steps = []
    for ids in itertools.combinations(range(5), 2):
        cohort = Cohort(jnp.array(ids), jnp.ones(2, bool), jnp.ones(2, jnp.int32), jnp.ones(2, jnp.int32), 5, jnp.int32(0))
        server = Varp({"x": jnp.zeros(bench.DIM)}, {"x": jnp.asarray(h.mean(0), jnp.float32)})
        aggregate = {k: {"x": jnp.asarray(v[list(ids)].mean(0), jnp.float32)} for k, v in (("model", u), ("stale", h))}
        steps.append(np.asarray(method.serve(None, server, aggregate, cohort).params["x"]))
    np.testing.assert_allclose(np.mean(steps, 0), u.mean(0), atol=1e-6)


@pytest.mark.full
def test_partial_participation_leaves_no_variance():
    """Late iterates stand still where FedAvg's keep jumping with the cohort."""
    for name, still in (("fedvarp", True), ("fedavg", False)):
        a, b = (bench.path(name, rounds=r, lr=0.02) for r in (400, 401))
        assert (np.abs(a - b).max() < 1e-5) == still


def test_memory_costs_nothing():
    _, record = bench.run(bench.make("fedvarp"), rounds=1)
    assert record.rounds["bytes_up"][0].tolist() == [12] * 3 == record.rounds["bytes_down"][0].tolist()
