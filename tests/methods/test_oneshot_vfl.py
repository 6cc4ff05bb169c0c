from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import HIDDEN, bowl, classifier, parties

from fedjax_lab import registry
from fedjax_lab.data import scenario, sources
from fedjax_lab.methods.modalities import oneshot_vfl as module
from fedjax_lab.parts import vertical
from fedjax_lab.parts.solvers.kmeans import kmeans
from fedjax_lab.tasks import build

PROBLEM = parties()
PEOPLE = PROBLEM.population
ALL = bench.always(*range(7))
OPTIONS = {"lr": 0.1, "batch_size": "full", "epochs": 5, "top_epochs": 4, "weak": "jitter:0.1", "strong": "jitter:0.3"}


def run(rounds=2, people=PEOPLE, **options):
    method = registry.make("oneshot-vfl", PROBLEM.task, **{**OPTIONS, **options})
    return bench.run(method, people, cohort=ALL, rounds=rounds, task=PROBLEM.task)


@pytest.mark.parametrize("precision, size", [("float16", 2), pytest.param("float32", 4, marks=pytest.mark.full)])
def test_three_tensors_a_party_are_sent_once(precision, size):
    rounds = run(precision=precision)[1].rounds
    np.testing.assert_array_equal(rounds["bytes_up"], [[2 * 6 * HIDDEN * size] * 7, [0] * 7])
    np.testing.assert_array_equal(rounds["bytes_down"], [[6 * HIDDEN * size] * 7, [0] * 7])


@pytest.mark.full
def test_a_few_shot_round_sends_what_one_alone_has_and_gets_a_bit_for_each_and_a_number_for_a_label():
    state, record = run(rounds=4, shots=2, threshold=0.4, precision="float16")
    alone, labels = np.asarray(PEOPLE.train.size) - 6, np.asarray(state.server.shots.labels)
    assert ((labels > module.NOBODY).sum(1) == alone).all() and 0 < (labels >= 0).sum() < alone.sum()
    up, down = record.rounds["bytes_up"], record.rounds["bytes_down"]
    np.testing.assert_array_equal(up[1:], [2 * HIDDEN * (6 + alone)] * 2 + [0 * alone])
    np.testing.assert_array_equal(down[2:], [-(-(alone + 32 * (labels >= 0).sum(1)) // 8), 0 * alone])


def test_what_is_missing_is_taken_from_the_aligned_examples_that_are_near():
    """A far row that is an aligned one finds itself, and a row of zeros their mean."""
    rng = np.random.default_rng(0)
    h = 50 * rng.normal(size=(3, 6, 8)).astype(np.float32)
    own = np.stack([np.stack([h[k, 2], np.zeros(8, np.float32)]) for k in range(3)])
    found = vertical.completed(jnp.asarray(own), jnp.asarray(h))
    for k in range(3):
        for j in range(3):
            np.testing.assert_allclose(found[k, j], own[k] if j == k else [h[j, 2], h[j].mean(0)], rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_names_of_clusters_change_nothing(monkeypatch):
    plain = run(rounds=1)[0].server
    monkeypatch.setattr(module, "kmeans", lambda *asked: (kmeans(*asked) + 1) % 3)
    renamed = run(rounds=1)[0].server
    assert np.abs(plain.parties["w1"] - bench.start(registry.make("oneshot-vfl", PROBLEM.task), PEOPLE, task=PROBLEM.task).server.parties["w1"]).max() > 1e-3
    for a, b in zip(*map(jax.tree.leaves, (plain, renamed)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.full
def test_gradients_of_examples_fall_into_clusters_by_label():
    """With a linear top model, before anything is trained; halves of digits."""
    people = scenario.build("subset:400+vertical:2,shuffle=false", sources.load("digits"), key=jax.random.key(0))
    x, y = people.train.examples["x"], people.public["y"]
    task = build("digits_mlp", "mlp", {"x": x[:1], "y": np.zeros(1, np.int32)}, 10, {"widths": "32"}, {})
    batch = {"y": jnp.asarray(y), "mask": jnp.ones(400, bool)}
    slope = jax.jit(jax.grad(lambda h, layers: vertical.loss(task, layers, h, batch)))
    for seed in range(3):
        key = jax.random.key(seed)
        params = [task.init(jax.random.fold_in(key, k)) for k in range(2)]
        h = jnp.stack([task.features(p, {"x": x[k * 400: (k + 1) * 400]}) for k, p in enumerate(params)])
        layers = [{"bias": jnp.zeros(10), "kernel": jax.random.normal(key, (64, 10)) / 8}]
        slopes = 400 * slope(h, layers)
        for k in range(2):
            found = np.asarray(kmeans(jax.random.fold_in(key, 7 + k), slopes[k], 10, 50))
            table = np.zeros((10, 10))
            np.add.at(table, (found, y), 1)
            assert table.max(1).sum() / 400 >= 0.95, (seed, k, table)


@pytest.mark.full
def test_nothing_one_is_sure_of_is_nothing_at_all():
    sure, without = (run(rounds=1, **more)[0].server for more in ({"threshold": 2.0}, {"weight": 0.0, "threshold": 0.4}))
    for a, b in zip(*map(jax.tree.leaves, (sure, without)), strict=True):
        np.testing.assert_array_equal(a, b)
    record = run(rounds=1, threshold=0.4, epochs=30)[1]
    assert 0 < record.rounds["kept"][0] <= 1


def test_what_does_not_fit_is_named():
    whole = classifier()
    with pytest.raises(ValueError, match="'oneshot-vfl' needs parties with different features of the same examples; task 'tiny' has none"):
        bench.start(bench.make("oneshot-vfl", whole.task), whole.population._replace(public={}), task=whole.task)
    with pytest.raises(ValueError, match="'oneshot-vfl' needs one class per example; task 'split' has none"):
        bench.start(bench.make("oneshot-vfl", bench.split()), task=bench.split())
    with pytest.raises(ValueError, match="'oneshot-vfl' needs a model with features and a head"):
        bench.make("oneshot-vfl", bowl().task)
