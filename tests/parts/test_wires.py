from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import registry, rules, spec
from fedjax_lab.parts.wires import codes
from fedjax_lab.parts.wires.half import half
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.parts.wires.qsgd import qsgd
from fedjax_lab.parts.wires.signsgd import signsgd
from fedjax_lab.parts.wires.topk import randk, topk

KEY = jax.random.key(7)


def change(seed=0, stats=False):
    rng = np.random.default_rng(seed)
    params = {"a": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32), "b": jnp.asarray(rng.normal(size=11), jnp.float32)}
    return {"params": params, "stats": {"mean": jnp.asarray(rng.normal(size=3), jnp.float32)}} if stats else params


def send(wire, value, row=None, key=KEY):
    code, row = wire.encode(key, value, wire.init(value) if row is None else row)
    return wire.decode(code), row, wire.bits(code)


def flat(value):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(value)])


ALL = {
    "topk": topk(0.2), "topk leaf": topk(0.2, scope="leaf"), "randk": randk(0.3), "qsgd": qsgd(3, bucket=8), "sign": signsgd(),
    "sign leaf": signsgd("leaf", memory=False), "half": half(), "topk+qsgd": codes.chain(topk(0.3), qsgd()),
    "topk+qsgd+half": codes.chain(topk(0.3), qsgd(15), half()), "qsgd+topk": codes.chain(half("float16"), topk(0.5)),
}


@pytest.mark.parametrize("name", ALL)
def test_the_structure_arrives_and_statistics_arrive_whole(name):
    for stats in (False, True):
        value = change(stats=stats)
        got, row, bits = send(ALL[name], value)
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, got, value)
        assert all(jax.tree.leaves(same)) and jax.tree.structure(row) == jax.tree.structure(ALL[name].init(value))
        assert 0 < bits and isinstance(bits, int)
        if stats:
            np.testing.assert_array_equal(got["stats"]["mean"], value["stats"]["mean"])
            assert bits == send(ALL[name], value["params"])[2] + 3 * 32


@pytest.mark.parametrize("name", ALL)
def test_side_by_side_is_one_by_one(name):
    wire, values = ALL[name], [change(s) for s in range(3)]
    keys = jax.random.split(KEY, 3)
    stack = jax.tree.map(lambda *x: jnp.stack(x), *values)
    got = jax.jit(jax.vmap(lambda k, v: send(wire, v, key=k)[:2]))(keys, stack)
    for i, value in enumerate(values):
        one = send(wire, value, key=keys[i])[:2]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7), got, one)


@pytest.mark.parametrize("wire", [topk(0.1), topk(0.1, scope="leaf"), signsgd(), signsgd("leaf")], ids=["topk", "leaf", "sign", "signs"])
def test_sent_and_remembered_is_what_was_wanted(wire):
    row, sent, total = wire.init(change()), 0, 0
    for seed in range(4):
        value = change(seed)
        error = flat(row[0])
        got, row, _ = send(wire, value, row)
        np.testing.assert_allclose(flat(got) + flat(row[0]), error + flat(value), rtol=1e-6, atol=1e-6)
        sent, total = sent + flat(got), total + flat(value)
    np.testing.assert_allclose(sent, total - flat(row[0]), rtol=1e-5, atol=1e-5)  # over time nothing is lost


def test_topk_sends_the_largest():
    value = change()
    got, _, bits = send(topk(0.2, memory=False), value)
    entries, k = flat(value), round(0.2 * 46)
    expected = np.where(np.abs(entries) >= np.sort(np.abs(entries))[-k], entries, 0)
    np.testing.assert_array_equal(flat(got), expected)
    assert bits == k * (32 + 6)
    leaf, _, bits = send(topk(0.2, scope="leaf", memory=False), value)
    assert [int(np.count_nonzero(x)) for x in jax.tree.leaves(leaf)] == [7, 2] and bits == 7 * (32 + 6) + 2 * (32 + 4)
    np.testing.assert_array_equal(flat(send(topk(1.0), value)[0]), entries)


def test_what_is_stale_may_fade():
    wire = topk(0.1, decay=0.5)
    _, row, _ = send(wire, change())
    got, left, _ = send(wire, jax.tree.map(jnp.zeros_like, change()), row)
    np.testing.assert_allclose(flat(got) + flat(left[0]), 0.5 * flat(row[0]), rtol=1e-6)


@pytest.mark.parametrize("wire", [qsgd(1), qsgd(3, bucket=8), qsgd(15, norm="max"), qsgd(2, bucket=0), randk(0.25)], ids=range(5))
def test_random_codes_are_unbiased(wire):
    value, draws = change(), 5_000
    got = jax.vmap(lambda k: send(wire, value, key=k)[0])(jax.random.split(KEY, draws))
    stack = np.concatenate([np.asarray(x, np.float64).reshape(draws, -1) for x in jax.tree.leaves(got)], 1)
    sigma = np.maximum(stack.std(0), 1e-6) / draws**0.5
    assert (np.abs(stack.mean(0) - flat(value)) < 4.5 * sigma + 1e-6).all()


@pytest.mark.parametrize("levels", [1, 4, 15])
def test_the_variance_of_quantization_is_bounded(levels):
    x = change()["a"]
    draws = jax.vmap(lambda k: send(qsgd(levels, bucket=0), {"a": x}, key=k)[0]["a"])(jax.random.split(KEY, 2000))
    measured = float(jnp.mean(jnp.sum((draws - x) ** 2, (1, 2))))
    assert measured <= min(x.size / levels**2, x.size**0.5 / levels) * float(jnp.sum(x**2))


def test_levels_are_whole_numbers_in_range_and_zero_is_safe():
    value = {"x": jnp.array([0.0, 3.0, -4.0, 0.0])}
    code, _ = qsgd(5).encode(KEY, value, ())
    levels = np.asarray(code[0][0].levels.values)
    assert levels.dtype == np.int8 and np.abs(levels).max() <= 5 and float(code[0][0].norms[0]) == 5.0
    assert levels.tolist() == [0, 3, -4, 0]  # 3/5 and 4/5 of the norm are levels
    assert not flat(send(qsgd(5), {"x": jnp.zeros(9)})[0]).any()
    assert send(qsgd(15, bucket=8), {"x": jnp.zeros(20)})[2] == 3 * 32 + 20 * 5
    assert send(qsgd(1, bucket=0), {"x": jnp.zeros(20)})[2] == 32 + 20 * 2


def test_signs_take_one_bit_and_keep_the_mean_size():
    value = change()
    got, _, bits = send(signsgd(memory=False), value)
    entries = flat(value)
    np.testing.assert_allclose(flat(got), np.abs(entries).mean() * np.sign(entries), rtol=1e-6)
    assert bits == 46 + 32 and send(signsgd("leaf"), value)[2] == 46 + 64 and send(signsgd("none"), value)[2] == 46
    bare, loud = (flat(send(signsgd("none", memory=False), jax.tree.map(lambda x, s=s: s * x, value))[0]) for s in (1, 1e6))
    np.testing.assert_array_equal(bare, loud)
    zeros = flat(send(signsgd("none", memory=False), {"x": jnp.zeros(4000)})[0])
    assert set(np.unique(zeros)) == {-1.0, 1.0} and abs(zeros.mean()) < 0.08


def test_half_rounds_and_counts():
    value = {"x": jnp.array([1.0, 1 + 2**-9, 70000.0]), "i": jnp.arange(3, dtype=jnp.int32)}
    got, _, bits = send(half(), value)
    assert got["x"].tolist() == [1.0, 1.0, 70144.0] and got["i"].tolist() == [0, 1, 2] and bits == 3 * 16 + 3 * 32
    assert np.isinf(send(half("float16"), value)[0]["x"][2])


def test_chains_code_the_values_of_the_code_before():
    value, k = change(), round(0.3 * 46)
    got, _, bits = send(codes.chain(topk(0.3, memory=False), qsgd(15)), value)
    kept = flat(send(topk(0.3, memory=False), value)[0])
    assert bits == k * 6 + k * 5 + 32 and (np.flatnonzero(flat(got)) == np.flatnonzero(kept)[flat(got)[kept != 0] != 0]).all()
    assert np.abs(flat(got) - kept).max() <= np.linalg.norm(kept) / 15
    same = codes.chain(rules.identity(), topk(0.3), rules.identity())
    np.testing.assert_array_equal(flat(send(same, value)[0]), flat(send(topk(0.3), value)[0]))


def test_what_is_known_costs_nothing():
    got, _, bits = send(known(), change())
    assert bits == 0 and (flat(got) == flat(change())).all()


def test_wires_are_registered_and_built_from_text():
    wires = registry.catalog("wire")
    assert {"topk", "randk", "qsgd", "signsgd", "half"} <= set(wires)
    wire = spec.build("wire", "topk:0.5,scope=leaf,memory=false", wires)
    assert np.count_nonzero(flat(send(wire, change())[0])) == 18 + 6
    with pytest.raises(ValueError, match="option 'share' of 'topk': '0' is not valid; expected float > 0 and <= 1"):
        spec.build("wire", "topk:0", wires)
