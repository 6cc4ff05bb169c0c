"""Noise at the clients, and the epsilon of their reports."""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import bench
from scipy import stats

import fedjax_lab
from fedjax_lab.parts.privacy import accountant
from fedjax_lab.parts.privacy.local import scale_of
from fedjax_lab.parts.transforms.composed import composed
from fedjax_lab.types import Result

ALIKE = {"weighting": "uniform"}


def reporting(text, **parts):
    return composed(bench.make("fedavg", **ALIKE), privacy=f"local-dp:{text}", **parts)


def test_no_noise_and_no_clip_is_fedavg_to_the_bit():
    state, _ = bench.run(reporting("epsilon=inf,clip=inf"))
    np.testing.assert_array_equal(state.server["x"], bench.path("fedavg", **ALIKE))


@pytest.mark.parametrize("epsilon, delta", [(0.3, 1e-5), (1.0, 1e-6), (8.0, 1e-5), (50.0, 1e-3)])
def test_gaussian_noise_is_the_least_that_epsilon_allows(epsilon, delta):
    """delta = P[loss > epsilon] - e^epsilon P'[loss > epsilon], by the normal law of the privacy loss; below 1 it beats the classic scale."""
    s = scale_of("gaussian", epsilon, delta)
    mean = 1 / (2 * s**2)  # of the loss, which is N(mean, 2 mean), and N(-mean, 2 mean) under the neighbor
    tails = [stats.norm.sf(epsilon, m, math.sqrt(2 * mean)) for m in (mean, -mean)]
    assert tails[0] - math.exp(epsilon) * tails[1] == pytest.approx(delta, rel=1e-4)
    assert epsilon >= 1 or s < math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def uploads(text, width=5000, clients=3, change=None):
    """What clients send whose changes are all the same."""
    method = bench.make("fedavg")
    change = jnp.zeros(width) if change is None else change
    method = method._replace(local=lambda key, message, client, data: Result({"model": {"x": change}}, 7.0, metrics={"loss": jnp.float32(0)}))
    local = composed(method, privacy=f"local-dp:{text}").local
    return [local(jax.random.key(i), {}, (), None) for i in range(clients)]


@pytest.mark.parametrize("text, law, scale", [
    ("epsilon=2,clip=0.3", "norm", 0.6 * scale_of("gaussian", 2.0, 1e-5)), ("epsilon=4,clip=0.3,mechanism=laplace", "laplace", 0.15)])
def test_every_clients_noise_has_the_declared_scale_and_is_its_own(text, law, scale):
    found = [np.asarray(u.upload["model"]["x"]) / scale for u in uploads(text)]
    assert min(stats.kstest(u, law).pvalue for u in found) > 1e-3
    assert np.abs(np.corrcoef(found) - np.eye(3)).max() < 0.06
    assert {u.weight["model"] for u in uploads(text)} == {1.0}


@pytest.mark.parametrize("mechanism, order", [("gaussian", 2), ("laplace", 1)])
def test_a_long_change_is_cut_by_the_norm_of_its_mechanism(mechanism, order):
    change = jnp.linspace(-1, 2, 5000)
    sent = np.mean([u.upload["model"]["x"] for u in uploads(f"epsilon=1e6,clip=0.5,mechanism={mechanism}", clients=20, change=change)], 0)
    expected = np.asarray(change) * 0.5 / np.linalg.norm(change, order)
    assert np.linalg.norm(sent - expected) < 0.1 * np.linalg.norm(expected)  # and unbiased beyond that
    assert all(u.metrics["clipped"] for u in uploads("epsilon=1,clip=0.5", change=change))


def spent(rounds, text="epsilon=0.5", participation="uniform", clients=20, cohort=4):
    return accountant.epsilon(reporting(text, cohort=cohort).release, participation, clients)[0](rounds)


def test_epsilon_is_of_all_reports_that_a_client_may_have_sent():
    assert spent(1, "epsilon=0.5,accountant=pld") == pytest.approx(0.5, abs=1e-3)
    assert 0.5 < spent(1) < 0.75 and spent(0) == 0 and spent(4) > spent(2) > spent(1)  # what RDP at integer orders loses
    assert spent(10, participation="cyclic") == spent(2, participation="uniform") == spent(2, participation="markov")
    assert spent(3, "epsilon=0.5,mechanism=laplace,accountant=pld") < 1.5
    assert spent(3, "epsilon=inf") == spent(3, "epsilon=0.5,accountant=none") == math.inf


def test_wires_and_rules_may_follow_the_noise():
    method = reporting("epsilon=8,clip=0.5", wire_up="half", aggregator="median")
    state, record = bench.run(method, rounds=2)
    assert np.isfinite(state.server["x"]).all() and record.rounds["bytes_up"][0].max() == 2 * bench.DIM


@pytest.mark.full
def test_every_row_says_how_much_was_told():
    flags = {"task": "digits_logreg", "clients": 12, "cohort": 4, "rounds": 2, "eval_every": 1}
    run = fedjax_lab.train(method="fedavg", privacy="local-dp:epsilon=4,clip=0.5", **flags)
    assert [row["epsilon"] for row in run.history] == pytest.approx([spent(t, "epsilon=4,clip=0.5", clients=12) for t in range(3)])


@pytest.mark.parametrize("text, name, words", [("clip=inf", "fedavg", "inf needs epsilon=inf"), ("epsilon=1", "mime", "several exchanges")])
def test_what_does_not_fit_is_refused(text, name, words):
    with pytest.raises(ValueError, match=words):
        composed(bench.make(name), privacy=f"local-dp:{text}")
