from __future__ import annotations

import itertools

import bench
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.methods.optimization.fedstale import Stale
from fedjax_lab.parts.cohorts.bernoulli import bernoulli
from fedjax_lab.types import Cohort


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_where_everybody_is_certain_stale_changes_drop_out(beta):
    np.testing.assert_allclose(bench.path("fedstale", beta=beta, q=(1.0,), cohort=6), bench.path("fedavg", cohort=6), rtol=1e-4)


@pytest.mark.full
def test_with_all_of_the_stale_changes_it_is_fedvarp():
    stale = bench.path("fedstale", beta=1.0, q=(0.5,), weighting="uniform")
    np.testing.assert_allclose(stale, bench.path("fedvarp"), rtol=1e-5)
    half = bench.path("fedstale", beta=0.0, q=(0.5,), weighting="uniform")
    np.testing.assert_allclose(half, bench.path("fedavg", weighting="uniform"), rtol=1e-5)


def step(method, ids, u, h, p, q):
    """server's change of x for the set `ids`, from the fields as the engine sums them."""
    weight = np.zeros(len(p))
    weight[ids] = (p / q)[ids]
    total = {"model": weight @ u, "stale": weight @ h, "news": (p * (weight > 0)) @ (u - h)}
    cohort = Cohort(jnp.arange(len(p)), jnp.asarray(weight > 0), jnp.ones(len(p), jnp.int32), jnp.ones(len(p), jnp.int32), len(p), jnp.int32(0))
    server = Stale({"x": jnp.zeros(bench.DIM)}, {"x": jnp.asarray(p @ h, jnp.float32)}, jnp.float32(p.sum()))
    new = method.serve(None, server, {k: {"x": jnp.asarray(v, jnp.float32)} for k, v in total.items()}, cohort)
    return np.asarray(new.params["x"]), np.asarray(new.h["x"])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_step_is_unbiased_for_every_beta(beta):
    rng, p, q = np.random.default_rng(1), np.array([3.0, 1.0, 2.0, 5.0]), np.array([0.9, 0.2, 0.5, 0.7])
    u, h = rng.normal(size=(2, 4, bench.DIM))
    method, mean = bench.make("fedstale", beta=beta), 0
    for here in itertools.product([False, True], repeat=4):
        ids, probability = np.flatnonzero(here), np.prod(np.where(here, q, 1 - q))
        x, total = step(method, ids, u, h, p, q)
        mean = mean + probability * x
        fresh = np.where(np.array(here)[:, None], u, h)
        np.testing.assert_allclose(total, p @ fresh, atol=1e-5)  # the sum over all clients follows the rows
    np.testing.assert_allclose(mean, p @ u / p.sum(), atol=1e-6)


def test_an_empty_round_moves_or_not():
    rng, p = np.random.default_rng(2), np.ones(3)
    u, h = rng.normal(size=(2, 3, bench.DIM))
    moved, still = (step(bench.make("fedstale", empty=e), [], u, h, p, p)[0] for e in ("move", "skip"))
    np.testing.assert_allclose(moved, 0.5 * h.mean(0), rtol=1e-5)
    assert not still.any()


def test_unequal_probabilities_run_and_the_estimate_approaches_them():
    q = (1.0, 0.25)
    state, record = bench.run(bench.make("fedstale", lr=0.01), rounds=400, cohort=bernoulli(6, 3, q=q))
    assert np.isfinite(record.rounds["loss"]).all() and record.rounds["finite"].all()
    assert all({0, 2, 4} <= set(ids[mask].tolist()) for ids, mask in zip(*map(np.asarray, (record.rounds["ids"], record.rounds["mask"])), strict=True))
    np.testing.assert_allclose(state.clients.record.mean, [1, 4, 1, 4, 1, 4], rtol=0.25)
    assert record.rounds["bytes_up"].max() == 12
