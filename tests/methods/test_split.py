"""Models of which a part stays at home."""
from __future__ import annotations

import bench
import jax
import numpy as np
import pytest

from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms.split import cut, split

TASK = bench.split()


def whole(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.server)])


def test_two_parts_make_the_model():
    halves = cut(TASK, lambda params: named(params, "head"))
    params = TASK.init(jax.random.key(0))
    shared, private = halves.part(params, False), halves.part(params, True)
    assert list(shared) == ["body"] and list(private) == ["head"]
    joined = halves.join(shared, private)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True))
    np.testing.assert_array_equal(halves.shared_only(shared)["head"], np.zeros(4))


@pytest.mark.full
@pytest.mark.parametrize("base, options", [("fedavg", {}), ("fedprox", {"mu": 0.3}), ("fedavgm", {})])
def test_nothing_private_is_the_method_itself(base, options):
    method = bench.make(base, TASK, **options)
    nothing = split(method, cut(TASK, lambda params: jax.tree.map(lambda _: False, params)))
    (alone, one), (same, two) = (bench.run(m, task=TASK) for m in (method, nothing))
    np.testing.assert_array_equal(whole(alone), whole(same))
    np.testing.assert_array_equal(one.rounds["bytes_up"], two.rounds["bytes_up"])


@pytest.mark.full
def test_private_leaves_stay_at_home_and_are_not_counted():
    method = split(bench.make("fedavg", TASK), cut(TASK, lambda params: named(params, "head")))
    state, record = bench.run(method, rounds=1, task=TASK)
    start = bench.start(method, task=TASK)
    np.testing.assert_array_equal(state.server["head"], start.server["head"])
    moved = np.asarray((state.clients.private["head"] != start.clients.private["head"]).any(1))
    assert moved.tolist() == [True, False, True, False, True, False]  # those who took part
    body = 4 * TASK.init(jax.random.key(0))["body"].size
    np.testing.assert_array_equal(record.rounds["bytes_up"][0], body)
    np.testing.assert_array_equal(record.rounds["bytes_down"][0], body)


def test_a_method_with_personal_models_is_refused():
    with pytest.raises(ValueError, match="'ditto' has personal models of its own"):
        split(bench.make("ditto"), cut(bench.TASK, lambda params: jax.tree.map(lambda _: False, params)))
