"""Clipping, noise and epsilon, against their definitions and against reference values."""
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
from fedjax_lab.parts.privacy.central import left_for_sum
from fedjax_lab.parts.transforms.composed import composed
from fedjax_lab.types import Release

ALIKE = {"weighting": "uniform"}


def guarded(text, name="fedavg", cohort=3, **options):
    return composed(bench.make(name, **options), privacy=f"dp-fedavg:{text}", cohort=cohort)


def changed(method, people, i, clip=None):
    """What client i uploads in the first round."""
    state = method.init_server(jax.random.key(0), {"x": jnp.ones(3)}, None)
    message = method.broadcast(state, jnp.int32(i), jnp.int32(0))
    return method.local(jax.random.key(1), message, (), bench.client(people, i, 4))


def test_no_noise_and_no_clip_is_fedavg_to_the_bit():
    base = bench.path("fedavg", **ALIKE)
    state, _ = bench.run(guarded("noise=0,clip=inf", **ALIKE))
    np.testing.assert_array_equal(state.server.server["x"], base)
    other, _ = bench.run(guarded("noise=0,clip=0.01", **ALIKE))
    assert np.abs(other.server.server["x"] - base).max() > 0.1


@pytest.mark.full
def test_one_norm_over_the_whole_change_is_clipped():
    people = bench.population()
    for clip in (0.05, 0.4, 100.0):
        for i in range(4):
            whole = bench.make("fedavg").local(jax.random.key(1), {"model": {"x": jnp.ones(3)}}, (), bench.client(people, i, 4)).upload["model"]["x"]
            result = changed(guarded(f"noise=1,clip={clip}"), people, i)
            norm = np.linalg.norm(whole)
            np.testing.assert_allclose(result.upload["model"]["x"], whole * min(1, clip / norm), rtol=1e-6)
            assert bool(result.metrics["clipped"]) == (norm > clip) and result.weight["model"] == 1


def test_the_denominator_is_fixed():
    """Two of three expected clients: the sum is divided by three."""
    people = bench.population()
    method = guarded("noise=0,clip=0.3")
    uploads = [changed(method, people, i).upload["model"]["x"] for i in (0, 3)]
    rule, weight = method.exchanges[0].aggregate["model"], jnp.float32(1)
    acc = rule.zero({"x": uploads[0]}, weight)
    for u in uploads:
        acc = rule.add(acc, {"x": u}, weight)
    np.testing.assert_allclose(rule.finish(acc)["x"], sum(uploads) / 3, rtol=1e-6)


@pytest.mark.parametrize("text, deviation", [("noise=1.5,clip=0.2", 1.5 * 0.2 / 50), ("noise=1.5,clip=0.2,noise_cohort=1000", 1.5 * 0.2 / 1000),
                                              ("noise=1,clip=0.5,adaptive=true,bits_noise=0.05", 0.5 / 50 * (1 - 1 / 25) ** -0.5)])
def test_the_noise_has_the_declared_scale(text, deviation):
    method = guarded(text, cohort=50)
    state = method.init_server(jax.random.key(0), {"x": jnp.zeros(4000), "y": jnp.zeros((30, 100))}, None)
    aggregate = {"model": jax.tree.map(jnp.zeros_like, state.server), "below": jnp.float32(0.5)}
    first, second = (method.exchanges[0].serve(jax.random.key(k), state, aggregate, None).server for k in (1, 2))
    noise = np.concatenate([np.ravel(x) for x in (first["x"], first["y"], second["x"])])
    assert stats.kstest(noise / deviation, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first["x"], second["x"])[0, 1]) < 0.06 and abs(np.corrcoef(first["x"][:3000], np.ravel(first["y"]))[0, 1]) < 0.07


def test_the_clip_follows_the_quantile():
    method = guarded("noise=0,clip=0.1,adaptive=true,quantile=0.3,rate=0.5", cohort=4)
    state = method.init_server(None, {"x": jnp.ones(3)}, None)
    for b in (0.0, 1.0, 0.3):
        after = method.exchanges[0].serve(jax.random.key(0), state, {"model": {"x": jnp.zeros(3)}, "below": jnp.float32(b)}, None)
        np.testing.assert_allclose(after.clip, 0.1 * math.exp(-0.5 * (b - 0.3)), rtol=1e-6)
    people = bench.population()
    far = [changed(guarded(f"noise=0,clip={c},adaptive=true"), people, 3).upload["below"] for c in (1e-3, 1e3)]
    assert [float(x) for x in far] == [0, 1]
    norms = [float(np.linalg.norm(bench.make("fedavg").local(jax.random.key(1), {"model": {"x": jnp.ones(3)}}, (), bench.client(people, i, 4)).upload["model"]["x"]))
             for i in range(6)]
    state, _ = bench.run(guarded("noise=0,clip=0.001,adaptive=true,rate=1", cohort=6), rounds=12, cohort=bench.always(*range(6)))
    assert 0.1 * min(norms) < float(state.server.clip) < 10 * max(norms)


def test_what_is_left_for_the_sum():
    """1 / z^2 = 1 / z_Delta^2 + 1 / (2 sigma_b)^2."""
    left = left_for_sum(1.1, 5.0)
    assert left > 1.1 and 1 / 1.1**2 == pytest.approx(left**-2 + 10.0**-2) and left_for_sum(0.0, 5.0) == 0
    with pytest.raises(ValueError, match="leaves nothing of noise=1.1 for the sum; choose more than 0.55 clients"):
        left_for_sum(1.1, 0.5)


def spent(rounds, noise, participation="poisson", cohort=100, clients=10_000, **more):
    release = Release(noise, 1e-5, **{"accountant": "auto", "cohort": cohort, "population": None, "noised": ("model",), **more})
    return accountant.epsilon(release, participation, clients)[0](rounds)


@pytest.mark.parametrize("noise, rounds, expected", [(4.0, 10_000, 1.0355), (1.1, 10_000, 5.654), (1.1, 1_000, 1.725)])
def test_epsilon_equals_the_references(noise, rounds, expected):
    assert spent(rounds, noise) == pytest.approx(expected, abs=1e-3)


@pytest.mark.full
def test_epsilon_is_monotone_and_the_tighter_accountant_is_tighter():
    assert 0 == spent(0, 2.0) < spent(100, 2.0) < spent(200, 2.0) < spent(200, 1.5) < spent(200, 1.5, cohort=200)
    assert spent(20, 1.5, accountant="pld") < spent(20, 1.5)
    assert spent(10, 1.5) < spent(10, 1.5, "uniform")
    assert spent(200, 1.5, population=10**6) < spent(200, 1.5)
    assert spent(5, 0.0) == spent(5, 1.0, accountant="none") == math.inf


@pytest.mark.parametrize("scheme, kind", [("cyclic", "auto"), ("poisson+dropout:0.1", "auto"), ("uniform", "pld"), ("markov", "rdp")])
def test_the_wrong_sampler_is_an_error(scheme, kind):
    with pytest.raises(ValueError, match=f"--participation={scheme.replace('+', '.')}: no accountant of --privacy fits it; choose poisson"):
        spent(5, 1.0, scheme, accountant=kind)


REFUSED = [
    ({"wire_up": "qsgd:15"}, "fedavg", "nothing may come between"), ({"aggregator": "median"}, "fedavg", "nothing may come between"),
    ({}, "mime", "'mime' has several exchanges in a round"), ({"privacy": "dp-fedavg:clip=inf"}, "fedavg", "inf needs noise=0, since noise follows clip"),
    ({"privacy": "dp-fedavg:clip=-1"}, "fedavg", "clip"), ({"privacy": "dp"}, "fedavg", "--privacy=dp: .*dp-fedavg"),
]


@pytest.mark.parametrize("parts, name, words", REFUSED)
def test_what_does_not_fit_is_refused(parts, name, words):
    with pytest.raises(ValueError, match=words):
        composed(bench.make(name), **{"privacy": "dp-fedavg", **parts}, cohort=3)


FLAGS = {"task": "digits_logreg", "clients": 12, "cohort": 4, "rounds": 2, "eval_every": 1}


def test_every_row_says_how_much_was_told():
    run = fedjax_lab.train(method="fedavg", privacy="dp-fedavg:noise=2,clip=0.5,adaptive=true,bits_noise=0.5", participation="poisson", **FLAGS)
    told = [row["epsilon"] for row in run.history]
    assert told == pytest.approx([spent(t, 2.0, cohort=4, clients=12) for t in range(3)]) and told[0] == 0 < told[1] < told[2]
    said = "epsilon at delta=1e-05 by RDP, Poisson cohorts of 4 of 12 clients; neighbors differ by a client that is there or not"
    assert [row["privacy"] for row in run.history] == [said] * 3
    assert 0 <= run.history[-1]["train_clipped"] <= 1 and float(run.state.server.clip) != 0.5


def test_a_field_as_it_is_makes_epsilon_infinite_and_is_named():
    from fedjax_lab import config, run

    prepared = run.prepare(config.make({**FLAGS, "method": "scaffold", "privacy": "dp-fedavg"}))
    assert prepared.told(1) == math.inf and prepared.told(0) == 0
    assert prepared.privacy == "epsilon is infinite: c of the upload is neither clipped nor noised"
    prepared = run.prepare(config.make({**FLAGS, "method": "fedavg", "privacy": "dp-fedavg"}))
    assert prepared.privacy == "epsilon at delta=1e-05 by RDP, uniform cohorts of 4 of 12 clients; neighbors differ by a client that is replaced"
