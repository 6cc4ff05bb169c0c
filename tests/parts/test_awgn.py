from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.wires.awgn import awgn
from fedjax_lab.parts.wires.plain import unless_zero

KEY = jax.random.key(3)


def noise(variance, value, key=KEY):
    wire = awgn(variance)
    code, row = wire.encode(key, value, wire.init(value))
    assert row == () and wire.bits(code) == sum(x.size * x.dtype.itemsize * 8 for x in jax.tree.leaves(value))
    return jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), wire.decode(code), value)


@pytest.mark.parametrize("variance", [1e-2, 4.0])
def test_the_noise_is_white_and_of_that_variance(variance):
    zeros = {"a": jnp.zeros((100, 50)), "b": jnp.zeros(5000)}
    one, two = noise(variance, zeros), noise(variance, zeros, jax.random.key(4))
    for x in (one["a"].ravel(), one["b"]):
        assert abs(x.mean()) < 4 * np.sqrt(variance / 5000) and abs(x.var() / variance - 1) < 4 * np.sqrt(2 / 5000)
    for x, y in ((one["a"].ravel(), one["b"]), (one["b"], two["b"])):  # neither entries nor messages share it
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / np.sqrt(5000)


def test_statistics_and_the_noiseless_arrive_as_they_are():
    value = {"params": {"w": jnp.arange(4.0)}, "stats": {"mean": jnp.arange(3.0)}}
    loud, silent = noise(1.0, value), noise(0.0, value)
    assert loud["params"]["w"].all() and not loud["stats"]["mean"].any()
    assert not any(x.any() for x in jax.tree.leaves(silent))


def test_nothing_to_tell_costs_one_bit():
    wire = unless_zero()
    for value, bits in (({"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}, 1), ({"a": jnp.zeros(3), "b": jnp.eye(2)}, 1 + 7 * 32)):
        code, _ = wire.encode(KEY, value, ())
        assert int(wire.bits(code)) == bits
        jax.tree.map(np.testing.assert_array_equal, wire.decode(code), value)
