"""The weighted mean, the total and the identity wire against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lab import rules, types

rng = np.random.default_rng(0)
VALUES = {"w": rng.normal(size=(6, 3, 2)).astype(np.float32), "b": rng.normal(size=(6, 2)).astype(np.float32)}
SCALARS = np.array([3, 0, 1, 2.5, 0, 4], np.float32)
WEIGHTS = {
    "scalar": SCALARS,
    "by leaf": {"w": SCALARS, "b": SCALARS[::-1].copy()},
    "by entry": {"w": (rng.random((6, 3, 2)) < 0.5).astype(np.float32), "b": (rng.random((6, 2)) < 0.5).astype(np.float32)},
    "by row": {"w": (rng.random((6, 3, 1)) < 0.7).astype(np.float32), "b": SCALARS},
}
for w in ("by entry", "by row"):
    WEIGHTS[w]["w"][:, 0] = 0  # entries that nobody speaks for


def fold(rule, values, weights, order=None):
    acc = rule.zero(*jax.tree.map(lambda x: x[0], (values, weights)))
    for i in range(len(jax.tree.leaves(values)[0])) if order is None else order:
        acc = rule.add(acc, *jax.tree.map(lambda x: x[i], (values, weights)))  # noqa: B023
    return acc


def weighed(weights, key):
    """Weights that broadcast against VALUES[key]."""
    w = weights[key] if isinstance(weights, dict) else weights
    return np.broadcast_to(w.reshape(w.shape + (1,) * (VALUES[key].ndim - w.ndim)), VALUES[key].shape)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", ["mean", "total"])
def test_against_numpy(name, kind):
    rule, weights = getattr(rules, name)(), WEIGHTS[kind]
    out = rule.finish(fold(rule, VALUES, weights))
    for key, value in VALUES.items():
        w = weighed(weights, key)
        expected = (w * value).sum(0)
        if name == "mean":
            expected = np.divide(expected, w.sum(0), out=np.zeros_like(expected), where=w.sum(0) > 0)
        np.testing.assert_allclose(out[key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", ["mean", "total"])
def test_a_weight_of_zero_silences_even_nan(name, kind):
    rule, weights = getattr(rules, name)(), WEIGHTS[kind]
    poisoned = {key: np.where(weighed(weights, key) == 0, np.float32(np.nan), value) for key, value in VALUES.items()}
    clean, out = (rule.finish(fold(rule, v, weights)) for v in (VALUES, poisoned))
    jax.tree.map(np.testing.assert_array_equal, out, clean)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", ["mean", "total"])
def test_merging_parts_in_any_grouping_is_adding_all(name, kind):
    rule = getattr(rules, name)()
    whole = {k: np.round(8 * v) for k, v in VALUES.items()}  # integers: float sums are exact
    weights = jax.tree.map(np.round, WEIGHTS[kind])
    a, b, c = (fold(rule, whole, weights, order) for order in ((0, 1), (2,), (3, 4, 5)))
    left, right, flat = rule.merge(rule.merge(a, b), c), rule.merge(a, rule.merge(b, c)), fold(rule, whole, weights)
    jax.tree.map(np.testing.assert_array_equal, left, right)
    jax.tree.map(np.testing.assert_array_equal, left, flat)
    nothing = rule.zero(*jax.tree.map(lambda x: x[0], (whole, weights)))
    jax.tree.map(np.testing.assert_array_equal, rule.finish(rule.merge(flat, nothing)), rule.finish(flat))


@pytest.mark.parametrize("name", ["mean", "total"])
def test_nothing_heard_is_zero(name):
    rule = getattr(rules, name)()
    out = [rule.finish(rule.zero(VALUES, SCALARS[0])), rule.finish(fold(rule, VALUES, 0 * SCALARS))]
    for leaf in jax.tree.leaves(out):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_a_mean_lies_between_and_ignores_the_scale_of_weights(seed, scale):
    generator = np.random.default_rng(seed)
    values, weights = generator.normal(size=(5, 3)).astype(np.float32), generator.random(5).astype(np.float32) + 0.01
    mean = rules.mean()
    out, scaled = (np.asarray(mean.finish(fold(mean, values, w))) for w in (weights, weights * np.float32(scale)))
    assert (out <= values.max(0) + 1e-5).all() and (out >= values.min(0) - 1e-5).all()
    np.testing.assert_allclose(out, scaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8])
def test_narrow_values_are_summed_in_float32(dtype):
    values = jnp.full((300, 2), 3, dtype)
    out = rules.mean().finish(fold(rules.mean(), values, jnp.ones(300)))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 3)
    np.testing.assert_array_equal(rules.total().finish(fold(rules.total(), values, jnp.ones(300))), 900)


def test_the_identity_wire():
    wire = rules.identity()
    value = {"w": jnp.ones((3, 2)), "n": jnp.ones(5, jnp.int8), "h": jnp.ones(4, jnp.bfloat16)}
    code, row = wire.encode(jax.random.key(0), value, wire.init(value))
    assert row == () and wire.decode(code) is value
    assert wire.bits(code) == 32 * 6 + 8 * 5 + 16 * 4
    assert isinstance(wire, types.Wire)


def test_a_mean_is_as_precise_as_its_values():
    with jax.enable_x64(True):
        values, weights = {"w": rng.normal(size=(3, 4))}, np.ones(3, np.float32)
        out = rules.mean().finish(fold(rules.mean(), values, weights))
        np.testing.assert_allclose(out["w"], values["w"].mean(0), rtol=1e-14)
