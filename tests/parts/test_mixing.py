from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lab.engine import gossip
from fedjax_lab.parts.mixing import links as lists
from fedjax_lab.parts.mixing.text import from_text

ALWAYS = ("ring", "full", "exponential", "random:4", "random:3", "random:2", "watts-strogatz:4,p=0.5", "random_regular:4", "erdos:0.9")
STATIC = [*ALWAYS[:3], "torus", *ALWAYS[6:]]


@functools.cache
def program(text: str, nodes: int, seed: int):
    topology = from_text(text, nodes, seed)
    return jax.jit(lambda key, clock: topology.at(jax.tree.map(jnp.asarray, topology.arrays), key, clock))


def links_of(text: str, nodes: int, seed: int = 0, clock: int = 0, key: int = 0):
    return program(text, nodes, seed)(jax.random.key(key), jnp.int32(clock))


def matrix(*args, **more) -> np.ndarray:
    return lists.dense(links_of(*args, **more))


@settings(max_examples=25, deadline=None)
@given(text=st.sampled_from(ALWAYS), nodes=st.sampled_from([6, 9]), seed=st.integers(0, 1), key=st.integers(0, 99))
def test_w_is_doubly_stochastic_symmetric_and_connected(text, nodes, seed, key):
    w = matrix(text, nodes, seed, key=key)
    np.testing.assert_allclose([w.sum(0), w.sum(1)], 1, atol=1e-6)
    assert (w >= 0).all() and (w == w.T).all() and (np.linalg.matrix_power(w + np.eye(nodes), nodes) > 0).all()


@pytest.mark.parametrize("text", ["ring", "exponential", "torus", "full"])
def test_w_is_zero_off_the_graph(text):
    n, i = 16, np.arange(16)
    apart = (i[:, None] - i) % n
    rows, columns = (np.abs(a[:, None] - a) for a in (i // 4, i % 4))
    near = [np.minimum(x, 4 - x) for x in (rows, columns)]
    linked = {"ring": np.isin(apart, [1, 15]), "full": apart > 0, "torus": sum(near) == 1,
              "exponential": np.isin(apart, [1, 2, 4, 8, 12, 14, 15])}[text]
    w, degree = matrix(text, n), linked.sum(1)
    np.testing.assert_array_equal((w - np.diag(np.diag(w))) > 0, linked)
    np.testing.assert_allclose(w[linked], 1 / (1 + degree[0]), rtol=1e-6)


def test_the_nearest_are_neighbors_both_ways(tmp_path):
    at = np.random.default_rng(1).normal(size=(9, 2))
    np.savetxt(tmp_path / "at.csv", at, delimiter=",")
    w = matrix(f"knn:3,file={tmp_path / 'at.csv'}", 9)
    apart = np.sqrt(((at[:, None] - at) ** 2).sum(2))
    near = np.array([[sum(apart[i] < apart[i, j]) <= 3 for j in range(9)] for i in range(9)])  # itself is nearer than all
    np.testing.assert_array_equal((w - np.diag(np.diag(w))) > 0, (near | near.T) & ~np.eye(9, dtype=bool))
    for text, words in (("knn:9,file=x", "k=9 of 9 nodes; choose 1..8"), (f"knn:3,file={tmp_path}/no.csv", "no.csv' is no text file of positions"),
                        ("knn:3", "file"), (f"knn:3,file={tmp_path / 'at.csv'}", r"finite positions \[9, 2\]; expected a line for each of 8 nodes")):
        with pytest.raises(ValueError, match=words) as error:
            from_text(text, 8 if "expected" in words else 9, 0)
        assert "\n" not in str(error.value)


def test_weights_on_an_uneven_graph_are_metropolis():
    star = lists.dense(lists.metropolis([[1, 2, 3], [0], [0], [0]]))
    expected = np.eye(4) * 0.75 + 0
    expected[0, 0], expected[0, 1:], expected[1:, 0] = 0.25, 0.25, 0.25
    np.testing.assert_allclose(star, expected)


@pytest.mark.parametrize("text", STATIC)
def test_the_gap_is_that_of_the_eigenvalues(text):
    w = matrix(text, 12)
    second = np.sort(np.abs(np.linalg.eigvalsh(w)))[-2]
    assert from_text(text, 12, 0).gap == pytest.approx(1 - second, abs=1e-6)


def test_the_gap_of_a_large_ring_is_the_known_one(monkeypatch):
    monkeypatch.setattr(lists, "DENSE", 10)
    assert from_text("ring", 60, 0).gap == pytest.approx(1 - 1 / 3 - 2 / 3 * np.cos(2 * np.pi / 60), rel=1e-4)
    directed = from_text("erdos:0.5,directed=true", 14, 0)
    assert directed.gap == pytest.approx(1 - np.sort(np.abs(np.linalg.eigvals(lists.dense(directed.arrays))))[-2], rel=1e-4)


@pytest.mark.parametrize("nodes, degree", [(12, 10), (9, 3), (8, 1), (9, 1)])
def test_a_drawn_graph_contracts_at_its_gap_in_the_mean_square(nodes, degree):
    topology, x = from_text(f"random:{degree}", nodes, 0), np.random.default_rng(0).normal(size=nodes)
    x -= x.mean()
    step = jax.jit(jax.vmap(lambda key: gossip.mix(topology.at((), key, 0), jnp.asarray(x))))
    ratio = (np.asarray(step(jax.random.split(jax.random.key(1), 4000))) ** 2).sum(1) / (x**2).sum()
    assert ratio.mean() == pytest.approx((1 - topology.gap) ** 2, abs=4 * ratio.std() / 4000**0.5)


def test_every_round_has_a_graph_of_its_own_and_the_same_one_again():
    first, second = (matrix("random:4", 12, key=k) for k in (0, 1))
    assert (first != second).any() and (first == matrix("random:4", 12, key=0)).all()
    assert [(matrix("one-peer", 8, clock=t) > 0).sum() for t in range(3)] == [16] * 3
    product = matrix("one-peer", 8, clock=2) @ matrix("one-peer", 8, clock=1) @ matrix("one-peer", 8, clock=0)
    np.testing.assert_array_equal(product, 1 / 8)
    np.testing.assert_array_equal(matrix("one-peer", 8, clock=1), matrix("one-peer", 8, clock=4))


def test_a_directed_graph_splits_what_nodes_have():
    w = matrix("erdos:0.5,directed=true", 14)
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-6)
    assert (w != w.T).any() and np.abs(w.sum(1) - 1).max() > 0.1


@settings(max_examples=15, deadline=None)
@given(text=st.sampled_from(["ring", "full", "random:3", "watts-strogatz:4,p=0.5"]), nodes=st.sampled_from([6, 9]), active=st.integers(0, 2**9 - 1))
def test_among_the_active_w_stays_doubly_stochastic(text, nodes, active):
    mask = np.array([active >> i & 1 for i in range(nodes)], bool)
    drawn = links_of(text, nodes)
    whole, w = lists.dense(drawn), lists.dense(gossip.among(drawn, jnp.asarray(mask), False))
    np.testing.assert_allclose([w.sum(0), w.sum(1)], 1, atol=1e-6)
    np.testing.assert_array_equal(w[~mask], np.eye(nodes)[~mask])
    off = ~np.eye(nodes, dtype=bool) & mask & mask[:, None]
    np.testing.assert_array_equal(w[off], whole[off])


def test_among_the_active_columns_of_a_directed_graph_still_sum_to_one():
    links, mask = from_text("erdos:0.5,directed=true", 14, 0).arrays, jnp.arange(14) % 3 > 0
    w = lists.dense(gossip.among(jax.tree.map(jnp.asarray, links), mask, True))
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(w[~np.asarray(mask)], np.eye(14)[~np.asarray(mask)], atol=1e-6)


@pytest.mark.parametrize("text, nodes", [("ring", 40), ("ring", 6), ("random_regular:3", 40), ("full", 12)])
def test_mixing_is_the_product_with_w_and_its_power(text, nodes):
    links = jax.tree.map(jnp.asarray, from_text(text, nodes, 0).arrays)
    x = {"a": np.random.default_rng(0).normal(size=(nodes, 3, 2)).astype(np.float32), "b": np.arange(nodes, dtype=np.float32)}
    for steps in (0, 1, 5):
        w = np.linalg.matrix_power(lists.dense(links), steps)
        mixed = gossip.mix(links, jax.tree.map(jnp.asarray, x), steps)
        jax.tree.map(lambda got, given, w=w: np.testing.assert_allclose(got, np.einsum("ij,j...->i...", w, given), rtol=1e-5, atol=1e-5), mixed, x)


@pytest.mark.parametrize("text, nodes", [("random_regular:3", 30), ("full", 8), ("one-peer", 16)])
def test_mixing_keeps_the_mean_of_integers_exactly(text, nodes):
    links = links_of(text, nodes)  # with weights that are powers of two
    x = 1024 * np.random.default_rng(0).integers(-9, 9, (nodes, 5)).astype(np.float32)
    for steps in (1, 3):
        mixed = np.asarray(gossip.mix(links, jnp.asarray(x), steps))
        assert (mixed != x).any()
        np.testing.assert_array_equal(mixed.sum(0), x.sum(0))


@pytest.mark.parametrize("text", ["ring", "torus", "exponential", "watts-strogatz"])
def test_the_distance_to_the_mean_shrinks_at_the_gap(text):
    topology = from_text(text, 36, 0)
    links, x = jax.tree.map(jnp.asarray, topology.arrays), np.random.default_rng(0).normal(size=(36, 50)).astype(np.float32)
    x -= x.mean(0)
    far, further = (np.linalg.norm(gossip.mix(links, jnp.asarray(x), steps)) for steps in (40, 41))
    assert further / far == pytest.approx(1 - topology.gap, rel=2e-2) or far < 1e-4 * np.linalg.norm(x)
    one = np.linalg.norm(gossip.mix(links, jnp.asarray(x))) / np.linalg.norm(x)
    assert one <= 1 - topology.gap + 1e-6


@pytest.mark.parametrize("text, nodes, words", [
    ("rign", 8, "unknown graph 'rign'; valid: erdos, exponential, full, knn, one-peer, random, random-regular, ring, torus, watts-strogatz; did you mean 'ring'"),
    ("ring:3", 8, "'ring' takes at most 0 values; got 3"), ("erdos:0.05", 20, "falls into .. parts; choose more links"),
    ("erdos:0.1,directed=true", 20, "falls into . parts"), ("torus", 7, "7 nodes are no grid of 1 rows"), ("torus:3", 8, "no grid of 3 rows"),
    ("one-peer", 6, "6 nodes are no hypercube"), ("random_regular:3", 7, "no graph of 7 nodes has degree 3"), ("random:9", 8, "degree=9 of 8 nodes; choose 1..7"),
    ("watts-strogatz:8", 8, "k=8 of 8 nodes; choose 2..7"), ("erdos:1.5", 8, "option 'p' of 'erdos': '1.5' is not valid; expected float >= 0 and <= 1"),
])
def test_what_is_not_valid_is_one_line(text, nodes, words):
    with pytest.raises(ValueError, match=words) as error:
        from_text(text, nodes, 0)
    assert str(error.value).startswith(f"--graph={text}: ") and "\n" not in str(error.value)
