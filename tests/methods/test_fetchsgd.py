from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import models, registry
from fedjax_lab.methods.communication.fetchsgd import hashes


def drawn(seed, d=200):
    return jnp.asarray(np.random.default_rng(seed).normal(size=d), jnp.float32)


def test_a_sketch_is_linear_and_its_hashes_are_fixed():
    h, again, other = hashes(200, 5, 0.5), hashes(200, 5, 0.5), hashes(200, 5, 0.5, seed=1)
    a, b = drawn(0), drawn(1)
    np.testing.assert_allclose(h.sketch(a) + h.sketch(b), h.sketch(a + b), atol=1e-5)
    np.testing.assert_array_equal(h.sketch(a), again.sketch(a))
    assert h.columns == 20 and (h.sketch(a).shape == (5, 20)) and np.any(h.column != other.column)
    assert set(np.unique(h.sign)) == {-1.0, 1.0} and int(h.column.max()) == 19


def test_a_heavy_hitter_alone_is_recovered_exactly():
    h = hashes(200, 5, 0.5)
    g = jnp.zeros(200).at[17].set(-3.25)
    estimate = h.estimate(h.sketch(g))
    assert float(estimate[17]) == -3.25 and int(jnp.argmax(jnp.abs(estimate))) == 17
    noisy = h.estimate(h.sketch(g + 0.01 * drawn(2)))
    assert abs(float(noisy[17]) + 3.25) < 0.2 and int(jnp.argmax(jnp.abs(noisy))) == 17
    assert not h.cleared(h.sketch(g), jnp.array([17])).any()


@pytest.mark.full
@pytest.mark.parametrize("options, other, others", [
    ({"momentum": 0.0}, "fedavg", {}), ({"momentum": 0.7, "clear": "subtract", "server_lr": 0.5}, "fedavgm", {"beta": 0.7, "server_lr": 0.5}),
], ids=["zero", "subtract"])
def test_with_room_for_all_it_is_averaging_with_momentum(options, other, others):
    column = np.asarray(hashes(3, 5, 100.0).column)
    assert all(len(set(row)) == 3 for row in column.tolist())  # no two entries share a cell
    found = bench.path("fetchsgd", share=1.0, size=100.0, local_steps=3, **options)
    np.testing.assert_allclose(found, bench.path(other, local_steps=3, **others), rtol=1e-4, atol=1e-6)


def test_messages_have_the_tables_size():
    method = bench.make("fetchsgd", bench.split(), rows=3, size=0.75)
    rounds = bench.run(method, rounds=1, task=bench.split())[1].rounds
    assert rounds["bytes_up"][0].tolist() == [4 * 3 * 4] * 3 and rounds["bytes_down"][0].tolist() == [4 * 16] * 3
    assert not bench.make("fetchsgd").info.stateful


@pytest.mark.full
def test_only_the_largest_move():
    state, _ = bench.run(bench.make("fetchsgd", bench.split(), size=1.0, share=0.1), rounds=1, task=bench.split())
    start = bench.start(bench.make("fetchsgd", bench.split()), task=bench.split()).server.params
    moved = sum(int(np.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (start, state.server.params)), strict=True))
    assert moved == 2  # a tenth of sixteen


def test_models_with_statistics_are_refused():
    example = {"x": jnp.zeros((1, 8, 8, 1)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
    with pytest.raises(ValueError, match="'fetchsgd' needs a model without normalization statistics"):
        registry.make("fetchsgd", models.build("resnet8", example, 3, norm="batch"))
