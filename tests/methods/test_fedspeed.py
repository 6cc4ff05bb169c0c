from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.local import gradient
from fedjax_lab.parts.oracles.directions import ascended, clipped


def test_duals_and_their_mean():
    state, _ = bench.run(bench.make("fedspeed"), rounds=5)
    np.testing.assert_allclose(state.server.h["x"], np.asarray(state.clients["x"]).mean(0), atol=1e-6)


@pytest.mark.full
def test_the_papers_server_averages_the_sampled_duals():
    people = bench.population()
    state, _ = bench.run(bench.make("fedspeed", dual_mean="sampled"), people, rounds=1)
    change = np.asarray(state.clients["x"])[[0, 2, 4]]
    np.testing.assert_allclose(state.server.params["x"], 1 + 2 * change.mean(0), rtol=1e-6)  # y - x and h are the same in round one
    everybody = {"cohort": 6, "rounds": 3}
    np.testing.assert_allclose(bench.path("fedspeed", dual_mean="sampled", **everybody), bench.path("fedspeed", **everybody), rtol=1e-5)


def batch():
    view = bench.client(bench.population(), 3).train
    return view.whole()


def test_the_ascent_is_one_global_step_of_length_rho():
    y, direction = {"x": jnp.array([1.0, 2.0, -1.0])}, gradient(bench.TASK)
    key = jax.random.key(0)
    _, g, _ = direction(key, y, batch())
    up = {"x": y["x"] + 0.5 * g["x"] / jnp.linalg.norm(g["x"])}
    _, expected, _ = direction(key, up, batch())
    loss, v, _ = ascended(direction, 0.5)(key, y, batch())
    np.testing.assert_allclose(v["x"], expected["x"], rtol=1e-5)
    assert loss == direction(key, y, batch())[0]  # the loss is that of y
    np.testing.assert_allclose(ascended(direction, 0.5, 0.25)(key, y, batch())[1]["x"], 0.75 * g["x"] + 0.25 * expected["x"], rtol=1e-5)


def test_the_clip_keeps_the_direction():
    y, direction = {"x": jnp.array([1.0, 2.0, -1.0])}, gradient(bench.TASK)
    g = np.asarray(direction(None, y, batch())[1]["x"])
    short = np.asarray(clipped(direction, 0.1)(None, y, batch())[1]["x"])
    np.testing.assert_allclose(short, 0.1 * g / np.linalg.norm(g), rtol=1e-5)
    assert not np.asarray(clipped(lambda *_: (0.0, {"x": jnp.zeros(3)}, ()), 0.1)(None, y, None)[1]["x"]).any()
