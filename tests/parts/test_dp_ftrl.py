"""Noise that is correlated over rounds, and its epsilon, against the matrices that the cards define."""
from __future__ import annotations

import itertools
import math

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import rdp
from methods import bench
from scipy import stats

import fedjax_lab
from fedjax_lab.parts.privacy import accountant
from fedjax_lab.parts.privacy.correlated import banded, binary_tree
from fedjax_lab.parts.transforms.composed import composed
from fedjax_lab.types import Cohort, Release

ALIKE = {"weighting": "uniform"}


def guarded(text, cohort=3, server=None, **options):
    return composed(bench.make("fedavg", **options), privacy=f"dp-ftrl:{text}", cohort=cohort, server=server)


def nodes(now: int, restart: int) -> list[tuple[int, int]]:
    """The intervals [from, to) of rounds, by the binary digits of their number, whose noises are that of a prefix sum; `restart` is a power of 2."""
    if restart and now > restart:
        return [(0, restart), *((a + restart, b + restart) for a, b in nodes(now - restart, restart))]
    sizes = [2**bit for bit in reversed(range(now.bit_length())) if now >> bit & 1]
    return [(sum(sizes[:i]), sum(sizes[:i + 1])) for i in range(len(sizes))]


def matrices(rounds: int, kind: str, size: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """B, C with B C the prefix sums: by the nodes of trees that restart every `size` rounds, or banded with `size` bands."""
    if kind == "tree":
        sums = [nodes(now, size) for now in range(1, rounds + 1)]
        used = sorted(set(itertools.chain(*sums)))
        b, c = ([[node in parts for node in used] for parts in sums], [[lo <= r < hi for r in range(rounds)] for lo, hi in used])
        return np.array(b, float), np.array(c, float)
    c = sum(math.comb(2 * k, k) / 4**k * np.eye(rounds, k=-k) for k in range(size))
    return np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(c), c


CASES = [("tree", 0), ("tree", 4), ("banded", 3), ("banded", 1)]
ROUNDS = 11


def made(kind, size):
    return binary_tree(size) if kind == "tree" else banded(size)


@pytest.mark.parametrize("kind, size", CASES)
def test_the_noise_of_prefix_sums_has_the_covariance_of_b(kind, size):
    strategy, width = made(kind, size), 20_000
    memory, like, sums = strategy.init(jax.random.key(0), jnp.zeros(width)), jnp.zeros(width), []
    draw = jax.jit(strategy.draw)
    for t in range(ROUNDS):
        n, memory = draw(memory, jax.random.fold_in(jax.random.key(1), t), like, jnp.int32(t))
        sums.append(n + (sums[-1] if sums else 0))
    b, c = matrices(ROUNDS, kind, size)
    np.testing.assert_allclose(b @ c, np.tril(np.ones((ROUNDS, ROUNDS))), atol=1e-12)
    np.testing.assert_allclose(np.asarray(sums) @ np.asarray(sums).T / width, b @ b.T, atol=0.25)
    scales = np.asarray(sums) / np.sqrt((b**2).sum(1))[:, None]
    assert min(stats.kstest(row, "norm").pvalue for row in scales) > 1e-4
    if kind == "tree" and not size:
        assert [int(x) for x in (b**2).sum(1)] == [int(t).bit_count() for t in range(1, ROUNDS + 1)]


@pytest.mark.parametrize("kind, size", CASES)
def test_the_sensitivity_is_the_longest_sum_of_a_clients_columns(kind, size):
    for rounds, apart in itertools.product((1, 2, 5, 8, 11), (1, 2, 3, 4, 20)):
        _, c = matrices(rounds, kind, size)
        expected = max((c[:, first::apart].sum(1) ** 2).sum() for first in range(min(apart, rounds)))
        assert made(kind, size).squared(rounds, apart) == pytest.approx(expected)


def spent(rounds, text="noise=2", participation="cyclic:groups=8", clients=40, cohort=5):
    return accountant.epsilon(guarded(text, cohort).release, participation, clients)[0](rounds)


def test_epsilon_of_one_epoch_is_that_of_the_tree():
    """rho = (1 + floor(log2 T)) / (2 z^2), as the library has it for a tree that everybody is in once."""
    for rounds in (1, 8, 13, 16):
        by_rho = min(a * (1 + int(math.log2(rounds))) / (2 * 2.0**2) + math.log1p(-1 / a) - math.log(a * 1e-5) / (a - 1) for a in range(2, 257))
        assert spent(rounds, participation="cyclic:groups=16") == pytest.approx(by_rho, abs=1e-6)
    theirs = rdp.RdpAccountant(range(2, 257), dp.NeighboringRelation.REPLACE_SPECIAL)
    theirs.compose(dp.SingleEpochTreeAggregationDpEvent(2.0, 16))
    assert spent(16, participation="cyclic:groups=16") == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-6)
    with_restarts = rdp.RdpAccountant(range(2, 257), dp.NeighboringRelation.REPLACE_SPECIAL)
    with_restarts.compose(dp.SingleEpochTreeAggregationDpEvent(2.0, 8), 3)
    assert spent(24, "noise=2,restart=8") == pytest.approx(with_restarts.get_epsilon(1e-5), abs=1e-6)
    assert spent(24) > spent(24, "noise=2,restart=8")  # a restart ends what later turns add to the same nodes


def test_epsilon_is_monotone_and_independent_noise_is_dp_sgd_without_amplification():
    told = [spent(t) for t in range(20)]
    assert told[0] == 0 < told[1] and told == sorted(told) and spent(9, "noise=3") < spent(9)
    plain = accountant.epsilon(Release(2.0, 1e-5, "auto", 40, None, ("model",)), "uniform", 40)[0](10)
    assert spent(10, "noise=2,matrix=banded,bands=1", "uniform", cohort=40) == pytest.approx(plain)
    assert spent(9, "noise=2,accountant=pld") < spent(9)
    assert spent(9, "noise=0") == spent(9, "noise=2,accountant=none") == math.inf


def test_correlated_noise_is_better_on_prefix_sums_at_the_same_epsilon():
    """The mean square error of prefix sums, at a sensitivity of one: the tree below independent noise, and square roots below the tree."""
    def error(kind, size, rounds=64):
        b, _ = matrices(rounds, kind, size)
        return (b**2).sum(1).mean() * made(kind, size).squared(rounds, rounds)

    assert error("banded", 16) < error("banded", 4) < error("tree", 0) < error("banded", 1)


@pytest.mark.parametrize("scheme", ["poisson", "uniform", "cyclic:shuffle=true", "cyclic+dropout:0.1", "markov"])
def test_the_wrong_sampler_is_an_error(scheme):
    with pytest.raises(ValueError, match="no accountant of --privacy fits it, since .* choose cyclic without shuffle, uniform with all clients"):
        spent(5, participation=scheme)


@pytest.mark.parametrize("server", [None, "momentum:beta=0.9"])
def test_no_noise_and_no_clip_is_the_method_itself(server):
    state, _ = bench.run(guarded("noise=0,clip=inf", server=server, **ALIKE))
    base = composed(bench.make("fedavg", **ALIKE), server=server)
    expected, _ = bench.run(base)
    np.testing.assert_array_equal(guarded("noise=0,clip=inf", server=server, **ALIKE).deploy(state.server)["x"], base.deploy(expected.server)["x"])
    other, _ = bench.run(guarded("noise=0,clip=0.01", server=server, **ALIKE))
    assert np.abs(guarded("noise=0,clip=0.01", server=server).deploy(other.server)["x"] - base.deploy(expected.server)["x"]).max() > 0.1


def test_noise_comes_once_and_on_the_sum():
    """The model after several rounds without any change is the noise of the prefix sums, z C / m."""
    for text, b in (("noise=1.5,clip=0.2", matrices(4, "tree")[0]), ("noise=1.5,clip=0.2,matrix=banded,bands=3", matrices(4, "banded", 3)[0])):
        method = guarded(text, cohort=50)
        state = method.init_server(jax.random.key(0), {"x": jnp.zeros(6000), "y": jnp.zeros((30, 100))}, None)
        still = {"model": jax.tree.map(jnp.zeros_like, state.server)}
        serve = jax.jit(lambda key, state, t, serve=method.exchanges[0].serve, still=still: serve(key, state, still, Cohort(*[None] * 4, 100, t)))
        for t in range(4):
            state = serve(jax.random.fold_in(jax.random.key(3), t), state, jnp.int32(t))
        noise = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.server)]) / (1.5 * 0.2 / 50 * np.linalg.norm(b[3]))
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(noise[:3000], noise[6000:])[0, 1]) < 0.07


FLAGS = {"task": "digits_logreg", "clients": 12, "cohort": 4, "rounds": 4, "eval_every": 2, "participation": "cyclic"}


@pytest.mark.full
def test_every_row_says_how_much_was_told():
    run = fedjax_lab.train(method="fedavg", privacy="dp-ftrl:noise=3,clip=0.5,matrix=banded,bands=2", **FLAGS)
    expected = [spent(t, "noise=3,matrix=banded,bands=2", "cyclic", 12, 4) for t in (0, 2, 4)]
    assert [row["epsilon"] for row in run.history] == pytest.approx(expected) and expected[0] == 0 < expected[1] < expected[2]
    assert 0 <= run.history[-1]["train_clipped"] <= 1


def test_what_does_not_fit_is_refused():
    from fedjax_lab import config, run

    with pytest.raises(ValueError, match="--participation=uniform: no accountant"):
        run.prepare(config.make({**FLAGS, "method": "fedavg", "privacy": "dp-ftrl", "participation": "uniform"}))
    for parts, words in (({"wire_up": "qsgd:15"}, "nothing may come between"), ({"aggregator": "median"}, "nothing may come between")):
        with pytest.raises(ValueError, match=words):
            composed(bench.make("fedavg"), privacy="dp-ftrl", **parts)
    with pytest.raises(ValueError, match="'clip' of 'dp-ftrl': inf needs noise=0"):
        guarded("clip=inf")
    prepared = run.prepare(config.make({**FLAGS, "method": "scaffold", "privacy": "dp-ftrl"}))
    assert prepared.told(1) == math.inf and prepared.privacy == "epsilon is infinite: c of the upload is neither clipped nor noised"
