from __future__ import annotations

import bench
import numpy as np
import pytest

A, O = ([bench.population().train.examples[k][np.repeat(np.arange(6), bench.population().train.size) == i] for i in range(6)] for k in "ao")


def by_hand(rounds, rho, scale, cohort, average="all"):
    """w after each round, with exact minima of scale_k F_k and clients as `bench.rota` draws them."""
    y, z, w, path = np.ones((6, bench.DIM)), np.zeros((6, bench.DIM)), np.ones(bench.DIM), []
    sent = y + z / rho
    for t in range(rounds):
        here = [(i * (2 if cohort < 6 else 1) + t) % 6 for i in range(cohort)]
        for k in here:
            h, b = scale[k] * A[k].mean(0), scale[k] * (A[k] * O[k]).mean(0)
            y[k] = (b + rho * w - z[k]) / (h + rho)
            z[k] += rho * (y[k] - w)
            sent[k] = y[k] + z[k] / rho
        w = sent.mean(0) if average == "all" else sent[here].mean(0)
        path.append(w)
    return path


@pytest.mark.parametrize("cohort, average, weighting", [(3, "all", "examples"), (6, "all", "uniform"), (3, "sampled", "uniform")])
def test_it_is_the_recursion_by_hand(cohort, average, weighting):
    scale = np.array([4, 1, 3, 6, 2, 5]) / 3.5 if weighting == "examples" else np.ones(6)
    method = bench.make("consensus-admm", rho=0.7, solve="exact", average=average, weighting=weighting)
    seen = bench.history(method, segments=(1,) * 5, cohort=cohort)
    for (state, _), w in zip(seen, by_hand(5, 0.7, scale, cohort, average), strict=True):
        np.testing.assert_allclose(state.server.params["x"], w, rtol=1e-4, atol=1e-5)
        if average == "all":  # what the server holds is the mean of all that was sent
            y, z = state.clients.y["x"], state.clients.z["x"]
            np.testing.assert_allclose((z + 0.7 * (y - state.server.params["x"])).sum(0), 0, atol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_with_half_of_the_clients_it_reaches_the_optimum_if_all_are_averaged(weighting):
    best = bench.optimum(bench.population(), weighting)
    exact = {"rho": 2.0, "solve": "exact", "rounds": 300, "weighting": weighting}
    np.testing.assert_allclose(bench.path("consensus-admm", **exact), best, atol=1e-4)


def test_averaging_the_sampled_alone_does_not_converge():
    best = bench.optimum(bench.population(), "uniform")
    assert np.linalg.norm(bench.path("consensus-admm", rho=2.0, solve="exact", rounds=300, average="sampled") - best) > 0.1


@pytest.mark.full
def test_many_steps_are_the_closed_form():
    steps = bench.path("consensus-admm", rho=1.0, lr=0.2, local_steps=200, cohort=bench.rota(6, 3, (200,)), rounds=3)
    np.testing.assert_allclose(steps, bench.path("consensus-admm", rho=1.0, solve="exact", rounds=3), rtol=1e-4)
