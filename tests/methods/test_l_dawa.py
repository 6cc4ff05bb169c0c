from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.methods.aggregation.l_dawa import alignment

X = np.array([3.0, 0.0, 4.0], np.float32)


@pytest.mark.parametrize("y, v", [(X, 1.0), (2.5 * X, 1.0), ([0, 1, 0], 0.0), (-X, -1.0), ([0, 0, 0], 1.0), ([5, 0, 0], 0.6)])
def test_the_weight_of_a_tensor(y, v):
    np.testing.assert_allclose(alignment(jnp.asarray(y, jnp.float32), X), v, rtol=1e-6)


def test_where_there_is_no_direction_the_weight_is_one():
    assert alignment(jnp.ones(3), jnp.zeros(3)) == 1 and alignment(jnp.float32(-2), jnp.float32(3)) == 1


@pytest.mark.full
def test_the_first_rounds_are_fedavg():
    np.testing.assert_array_equal(bench.path("l-dawa", rounds=3), bench.path("fedavg", rounds=3))
    assert (bench.path("l-dawa", rounds=4) != bench.path("fedavg", rounds=4)).all()


@pytest.mark.full
def test_a_round_by_hand():
    people, x = bench.population(), np.ones(3)
    method = bench.make("l-dawa", warmup=0)
    plain = bench.make("fedavg")
    ys = []
    for i, steps in ((0, 4), (2, 3), (4, 5)):
        change = plain.local(jax.random.key(0), {"model": {"x": jnp.ones(3)}}, (), bench.client(people, i, steps)).upload["model"]["x"]
        ys.append(1 + np.asarray(change, np.float64))
    aligned = [min(1, y @ x / np.linalg.norm(y) / np.linalg.norm(x)) * y for y in ys]
    state, _ = bench.run(method, people, rounds=1)
    np.testing.assert_allclose(state.server["x"], np.mean(aligned, 0), rtol=1e-5)
    assert np.linalg.norm(state.server["x"]) <= np.mean([np.linalg.norm(y) for y in ys]) + 1e-6


def test_nothing_changes_where_nobody_moves():
    np.testing.assert_allclose(bench.path("l-dawa", warmup=0, lr=1e-12), np.ones(3), rtol=1e-6)
