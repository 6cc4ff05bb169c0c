from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lab.methods.decentralized.monna import nearest


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.2, 0.4]))
def test_it_is_the_mean_of_the_nearest_with_its_own_among_them(seed, share):
    rng = np.random.default_rng(seed)
    stack, there = rng.normal(size=(7, 3)), rng.random(7) < 0.7
    there[0] = True
    got = nearest(share).combine({"x": jnp.asarray(stack)}, jnp.asarray(there, jnp.float32), None)["x"]
    order = sorted(np.flatnonzero(there), key=lambda j: np.linalg.norm(stack[j] - stack[0]))
    kept = order[: max(1, len(order) - int(np.ceil(share * len(order) - 1e-6)))]
    assert kept[0] == 0
    np.testing.assert_allclose(got, stack[kept].mean(0), rtol=1e-5, atol=1e-6)


def test_what_is_far_or_not_there_has_no_say():
    stack = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1e9, -1e9], [np.nan, np.nan]])
    got = nearest(0.25).combine({"x": jnp.asarray(stack)}, jnp.array([1.0, 1, 1, 1, 0]), None)["x"]
    np.testing.assert_allclose(got, stack[:3].mean(0), rtol=1e-6)
    nobody = nearest(0.25).combine({"x": jnp.asarray(stack)}, jnp.zeros(5), None)["x"]
    assert nobody.tolist() == [0, 0]


def test_with_nobody_to_fear_all_agree_after_one_step():
    stack = np.random.default_rng(0).normal(size=(6, 4))
    each = [nearest(0.0).combine({"x": jnp.asarray(np.roll(stack, -i, 0) - stack[i])}, jnp.ones(6), None)["x"] + stack[i] for i in range(6)]
    np.testing.assert_allclose(each, np.tile(stack.mean(0), (6, 1)), atol=1e-6)
