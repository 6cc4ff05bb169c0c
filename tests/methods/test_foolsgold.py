"""FoolsGold's weights, beside what tests/methods/test_oracles.py shows: whom they find, and whom they do not."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.methods.trust.foolsgold import trust

ALL = jnp.ones(6, bool)


def weights(rows, heard=None):
    rows = np.asarray(rows, np.float32)
    heard = jnp.ones(len(rows), bool) if heard is None else jnp.asarray(heard)
    return np.asarray(jax.jit(trust)({"x": jnp.asarray(rows)}, heard))


def test_clones_get_nothing_and_the_orthogonal_everything():
    honest = np.eye(6)[:4]
    assert weights(honest).tolist() == [1, 1, 1, 1]
    clone = np.eye(6)[4]
    np.testing.assert_allclose(weights([*honest, clone, 7 * clone]), [1, 1, 1, 1, 0, 0], atol=1e-6)


def test_scale_order_and_the_unheard_do_not_matter():
    rows = np.random.default_rng(0).normal(size=(6, 9)) + 0.2
    expected = weights(rows)
    assert 0 < expected.max() <= 1 and len(set(np.round(expected, 4))) > 2
    np.testing.assert_allclose(weights(rows * np.arange(1, 7)[:, None]), expected, atol=1e-5)
    np.testing.assert_allclose(weights(rows[::-1]), expected[::-1], atol=1e-5)
    more = np.concatenate([rows, rows[:1]])
    np.testing.assert_allclose(weights(more, np.arange(7) < 6), [*expected, 0], atol=1e-5)


def test_its_limits():
    """One attacker alone keeps its weight, and honest clients with the same data lose theirs."""
    assert weights([*np.eye(5)[:4], -9 * np.eye(5)[4]])[4] == 1
    rng = np.random.default_rng(1)
    alike = 1 + 0.01 * rng.normal(size=(5, 50))
    assert weights([*alike, np.where(np.arange(50) % 2, 1.0, -1.0)])[5] == 1
    assert weights([*alike, np.where(np.arange(50) % 2, 1.0, -1.0)])[:5].max() < 1e-2
