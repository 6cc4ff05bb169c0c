"""Secure aggregation: sums to the bit whoever drops out, uploads that are noise, and a run that is the plain one but for rounding."""
from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import bench
from scipy import stats

from fedjax_lab import config, registry, rules, run
from fedjax_lab.parts.privacy import masks, secagg, shamir
from fedjax_lab.parts.transforms.composed import composed
from fedjax_lab.types import Draw, Participation, Phase

P = shamir.PRIME


def test_powers_and_keys():
    base, exponent = np.random.default_rng(0).integers(0, P, (2, 200))
    assert shamir.power(base, exponent).tolist() == [pow(int(b), int(e), P) for b, e in zip(base, exponent)]
    assert all(pow(shamir.ROOT, (P - 1) // prime, P) != 1 for prime in (2, 3, 5, 7, 13)) and (P - 1) == 2**4 * 3**2 * 5 * 7 * 13
    one, other = jnp.asarray(base), jnp.asarray(exponent)
    np.testing.assert_array_equal(shamir.agreed(one, shamir.public(other)), shamir.agreed(other, shamir.public(one)))


def test_any_so_many_shares_give_the_secret_and_fewer_do_not():
    secret = jnp.array([5, 0, P - 1, 31234], jnp.uint32)
    join = jax.jit(shamir.joined)
    for threshold in (1, 3, 5):
        held = shamir.shares(jax.random.key(threshold), secret, 5, jnp.int32(threshold))
        for n in range(1, 6):
            for chosen in itertools.combinations(range(5), n):
                found = join(held, jnp.zeros(5, bool).at[jnp.asarray(chosen)].set(True))
                assert bool(jnp.all(found == secret)) == (n >= threshold), (threshold, chosen)


def test_too_few_shares_are_the_same_for_every_secret():
    """Two of three: over the polynomials, a share of one secret is distributed like a share of another."""
    draw = jax.jit(jax.vmap(lambda key, s: shamir.shares(key, s, 3, 2)[0], (0, None)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    for secret in (0, 40_000):
        bins = np.bincount(np.asarray(draw(keys, jnp.uint32(secret))) * 64 // P, minlength=64)
        assert stats.chisquare(bins).pvalue > 1e-3


@pytest.mark.parametrize("neighbors", [*(pytest.param(n, marks=pytest.mark.full) for n in (None, 2)), 4])
def test_the_sum_is_exact_whoever_drops_out(neighbors):
    value = {"a": jax.random.bits(jax.random.key(1), (6, 7), jnp.uint32), "b": jax.random.bits(jax.random.key(2), (6,), jnp.uint32)}

    @jax.jit
    def total(key, drawn, heard):
        ring = masks.circle(key, drawn, neighbors)
        sent = jax.vmap(lambda place, v: masks.masked(ring, place, v))(jnp.arange(6), value)
        added = jax.tree.map(lambda y: jnp.sum(jnp.where(heard.reshape(-1, *[1] * (y.ndim - 1)), y, 0), 0), sent)
        return masks.unmasked(jax.random.fold_in(key, 1), ring, heard, jnp.int32(3), added)

    everyone, some = [1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]
    for number, (drawn, heard) in enumerate([(everyone, everyone), (everyone, [1, 0, 1, 0, 1, 0]), (some, [1, 1, 0, 1, 0, 1]), (some, [0, 0, 0, 1, 1, 1]),
                                             ([1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0]), (some, [1, 1, 0, 0, 0, 0])]):
        found = total(jax.random.key(number), jnp.asarray(drawn, bool), jnp.asarray(heard, bool))
        wanted = jax.tree.map(lambda v, heard=heard: jnp.sum(v[np.flatnonzero(heard)], 0), value)
        same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), found, wanted)))
        assert same == (sum(heard) >= 3), (drawn, heard)


def uploads(text="bits=16,clip=4", zero=False, size=20_000):
    """What four clients send for a change of so many entries, and the bits of one."""
    phase = Phase(lambda key, message, client, data: result(data, zero, size), lambda server, client, clock: {"model": server}, {}, {}, {}, None)
    method = composed(bench.make("fedavg")._replace(local=phase.local), privacy=f"secagg:{text}", cohort=4)
    state = secagg.Secured(jnp.zeros(size), jnp.array([3, 4], jnp.uint32), jnp.float32(1))
    message = method.broadcast(state, jnp.int32(0), jnp.int32(2))
    data = bench.client(bench.population(), 0)._replace(roster=jnp.array([7, 2, 5, 9]))

    def one(i):
        return method.local(jax.random.key(3), message, (), data._replace(id=i)).upload["model"][0]

    return jax.jit(jax.vmap(one))(jnp.array([7, 2, 5, 9]))


def result(data, zero, size):
    change = jnp.zeros(size) if zero else jnp.linspace(-1, 1, size) * data.id
    return bench.make("fedavg").local(jax.random.key(0), {"model": {"x": jnp.ones(3)}}, (), data)._replace(upload={"model": change}, weight=1.0)


def uniform(values, bits):
    """The smaller p-value of chi-square tests of the highest and the lowest eight bits."""
    return min(stats.chisquare(np.bincount(np.asarray(part), minlength=256)).pvalue for part in (values >> (bits - 8), values & 255))


@pytest.mark.parametrize("zero", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_single_upload_is_noise(zero):
    sent = uploads(zero=zero)
    assert sent.bits == 16 + 2 and all(uniform(one, sent.bits) > 1e-3 for one in sent.values)
    assert np.abs(np.corrcoef(np.asarray(sent.values, np.float64)) - np.eye(4)).max() < 0.04
    change = jnp.linspace(-1, 1, 20_000) * (not zero)
    plain = secagg.rounded(jax.random.key(0), change / 4, 2**15 - 1, False) & (2**18 - 1)
    assert uniform(plain, 18) < 1e-12  # without the masks the same test sees what it is


def test_rounding():
    x = {"a": jnp.full(40_000, 0.3), "b": jnp.linspace(-1, 1, 501)}
    found = jax.tree.map(lambda v: np.asarray(secagg.signed(v, 32)), secagg.rounded(jax.random.key(0), x, 7, False))
    assert set(found["a"].tolist()) == {2, 3} and abs(found["a"].mean() - 2.1) < 0.01 and np.abs(found["b"] - 7 * np.asarray(x["b"])).max() < 1
    assert found["b"][0] == -7 and found["b"][-1] == 7
    down = np.asarray(secagg.signed(secagg.rounded(jax.random.key(0), x, 7, True)["b"], 32))
    assert (np.abs(down) <= 7 * np.abs(x["b"]) + 1e-6).all() and (down == np.trunc(7 * np.asarray(x["b"]))).all()
    wrapped = jnp.asarray([5, -5, 511, -512], jnp.int32).astype(jnp.uint32) & 1023
    assert secagg.signed(wrapped, 10).tolist() == [5, -5, 511, -512]


def test_the_modulus_is_as_wide_as_sums_need():
    assert [secagg.width(None, 16, n) for n in (1, 2, 4, 5, 1000)] == [16, 17, 18, 19, 26] and secagg.width(32, 16, 5) == 32
    with pytest.raises(ValueError, match="^option 'modulus' of 'secagg': 18 bits overflow, sums of 5 clients with 16 bits need 19; choose 19..32, or fewer bits$"):
        secagg.width(18, 16, 5)
    with pytest.raises(ValueError, match="^option 'bits' of 'secagg': sums of 1000 clients with 24 bits overflow 32; choose at most 22$"):
        secagg.width(None, 24, 1000)


def test_what_is_a_sum():
    assert secagg.sums(rules.mean()) and secagg.sums(rules.total()) and not secagg.sums(registry.catalog("aggregator")["vote"]())
    assert not secagg.sums(registry.catalog("aggregator")["median"]())


HEARD = jnp.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], bool)


@functools.cache
def losing():
    """Four of six clients in five places; one is lost in the second round, three in the third."""

    def draw(key, state, clock):
        ids = jnp.array([0, 1, 3, 5, 2], jnp.int32)
        return Draw(state, ids, jnp.array([1, 1, 1, 1, 0], bool), HEARD[clock], jnp.full(5, 4, jnp.int32))

    return Participation(5, lambda key, census: (), draw)


def test_a_run_is_the_plain_one_but_for_rounding():
    method = composed(bench.make("fedavg"), privacy="secagg:bits=20,clip=8", cohort=4)
    plain = [state.server["x"] for state, _ in bench.history(bench.make("fedavg"), cohort=losing())]
    found = bench.history(method, cohort=losing())
    hidden = [state.server.server["x"] for state, _ in found]
    assert np.abs(hidden[0] - 1).max() > 0.1 and 0 < np.abs(hidden[1] - plain[1]).max() < 1e-4 > np.abs(hidden[0] - plain[0]).max()
    np.testing.assert_array_equal(hidden[2], hidden[1])  # one of four is too few
    assert [int(record.rounds["aborted"][0]) for _, record in found] == [0, 0, 1]
    assert np.abs(plain[2] - plain[1]).max() > 1e-3
    record = found[1][1]
    entries, shares = -(-(3 + 1) * 23 // 8), (1 + 2 * 3) * 256 // 8
    assert record.rounds["bytes_up"][0].tolist() == [entries + shares] * 3 + [0, 0]  # 20 bits, and 3 for sums of five places
    assert record.rounds["bytes_down"][0].tolist() == [3 * 4 + 2 * 3 * 256 // 8] * 4 + [0]


REFUSED = [
    ({"aggregator": "median"}, "fedavg", "secagg", "'fedavg' has a wire or a rule for model of the upload that is no sum"),
    ({"aggregator": "vote"}, "fedavg", "secagg", "has a wire or a rule for model"), ({"wire_up": "half"}, "fedavg", "secagg", "has a wire or a rule for model"),
    ({}, "mime", "secagg", "'mime' has several exchanges in a round"), ({}, "fedavg", "secagg:neighbors=3", "3 is odd; choose an even number"),
    ({}, "fedavg", "secagg+dp-fedavg", "nothing may come between"), ({}, "fedavg", "secagg:bits=1", "option 'bits' of 'secagg': '1' is not valid"),
]


@pytest.mark.parametrize("parts, name, text, words", REFUSED)
def test_what_does_not_fit_is_refused(parts, name, text, words):
    with pytest.raises(ValueError, match=words):
        composed(bench.make(name), privacy=text, cohort=3, **parts)


@pytest.mark.parametrize("more, words", [
    ({"privacy": "secagg:modulus=17"}, "17 bits overflow, sums of 4 clients with 16 bits need 18"), ({"schedule": "buffered:2"}, "--schedule=buffered:2: single uploads"),
    ({"attack": "alie:0.3"}, "--attack=alie:0.3: single uploads are masked, and the other needs to see and change single uploads"),
    ({"task": "digits_resnet8:norm=batch", "stats": "local"}, "--stats=local: single uploads"),
])
def test_flags_that_need_single_uploads_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        run.prepare(config.make({"task": "digits_logreg", "clients": 12, "cohort": 4, "privacy": "secagg", "allow_untested": True, **more}))


def test_behind_differential_privacy_epsilon_stays_and_no_norm_grows():
    settings = {"task": "digits_logreg", "clients": 12, "cohort": 4, "participation": "poisson"}
    alone, both = (run.prepare(config.make({**settings, "privacy": text})) for text in ("dp-fedavg:noise=2", "dp-fedavg:noise=2+secagg:bits=8"))
    assert alone.told(3) == both.told(3) and alone.privacy == both.privacy and np.isfinite(both.told(3))
    assert both.simulation.fields() == ["model", "shares"]
    bare = run.prepare(config.make({**settings, "method": "scaffold", "privacy": "dp-fedavg+secagg"}))
    assert bare.told(1) == np.inf and "c of the upload" in bare.privacy
