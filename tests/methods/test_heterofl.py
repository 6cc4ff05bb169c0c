from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import models, registry, run
from fedjax_lab.config import Config
from fedjax_lab.models.cnn import CNN
from fedjax_lab.models.mlp import MLP
from fedjax_lab.parts.widths import chain

PROBLEM = problems.classifier()
IMAGES = {"x": jnp.linspace(-1, 1, 3 * 64).reshape(3, 8, 8, 1), "y": jnp.array([0, 2, 1]), "mask": jnp.array([True, True, False])}


def task(module):
    return models.classification("images", module, IMAGES)


def cut(params, like):
    """The first entries along every axis; a flattened image keeps the first channels of every pixel."""
    if params.shape[0] == 16:
        return params.reshape(4, -1, params.shape[1])[:, : like.shape[0] // 4, : like.shape[1]].reshape(like.shape)
    return params[tuple(slice(n) for n in like.shape)]


@pytest.mark.parametrize("module", [functools.partial(MLP, classes=3), functools.partial(CNN, classes=3)])
@pytest.mark.full
def test_masked_equals_sliced_in_values_and_gradients(module):
    convolutional = module.func is CNN
    wide, narrow = (task(module(widths=w, **({"hidden": h} if convolutional else {}))) for w, h in (((6, 4), 8), ((3, 2), 4)))
    layers = chain("it", wide, "head")
    assert layers.units == ((6, 4, 8) if convolutional else (6, 4))
    params = jax.tree.map(lambda x: x + 0.1, wide.init(jax.random.key(0)))
    mask = layers.held(jnp.array([3, 2, 4] if convolutional else [3, 2]))
    masked = jax.tree.map(lambda x, m: jnp.where(m, x, 0), params, mask)
    sliced = jax.tree.map(cut, params, narrow.init(jax.random.key(0)))
    np.testing.assert_allclose(wide.apply(masked, IMAGES), narrow.apply(sliced, IMAGES), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda p: wide.loss(jax.tree.map(lambda x, m: jnp.where(m, x, 0), p, mask), IMAGES, None)[0])(params)
    own = jax.grad(lambda p: narrow.loss(p, IMAGES, None)[0])(sliced)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(cut(a, b), b, rtol=1e-3, atol=1e-5), slope, own)
    held = sum(int(jnp.broadcast_to(m, x.shape).sum()) for m, x in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True))
    assert held == layers.entries([3, 2, 4]) == sum(x.size for x in jax.tree.leaves(sliced))
    jax.tree.map(lambda g, m: np.testing.assert_array_equal(np.where(m, 0, g), 0), slope, mask)


def make(**options):
    return registry.make("heterofl", PROBLEM.task, **{"head": "2", "lr": 0.1, "batch_size": "full", "local_steps": 2, **options})


@pytest.mark.full
def test_an_entry_counts_its_holders_and_stays_where_there_is_none():
    always = bench.always(1, 3, 4)  # of widths 0.25, 0.25, 1 of the four units
    method = make(widths=(1.0, 0.25), client_optimizer="sgd")
    state, record = bench.run(method, PROBLEM.population, rounds=1, cohort=always, task=PROBLEM.task)
    start = bench.start(method, PROBLEM.population, PROBLEM.task).server
    narrow = make(widths=(0.25,), client_optimizer="sgd")
    small, _ = bench.run(narrow, PROBLEM.population, rounds=1, cohort=bench.always(1, 3, 5), task=PROBLEM.task)
    np.testing.assert_array_equal(small.server["w1"][:, 1:], start["w1"][:, 1:])
    np.testing.assert_array_equal(small.server["w2"][1:], start["w2"][1:])
    assert (small.server["w1"][:, 0] != start["w1"][:, 0]).all()
    np.testing.assert_array_equal(narrow.deploy(small.server)["w1"][:, 1:], 0)
    ends = [make(widths=(w,), client_optimizer="sgd").local(jax.random.key(0), {"model": start}, (), bench.client(PROBLEM.population, i)).upload["model"]["w1"]
            for i, w in ((1, 0.25), (3, 0.25), (4, 1.0))]
    np.testing.assert_allclose(state.server["w1"] - start["w1"], np.hstack([np.mean([e[:, :1] for e in ends], 0), ends[2][:, 1:]]), rtol=1e-4, atol=1e-6)
    sizes = [4 * (5 + 1 + 3 + 3), 4 * (5 + 1 + 3 + 3), 4 * (20 + 4 + 12 + 3)]
    assert record.rounds["bytes_up"][0].tolist() == record.rounds["bytes_down"][0].tolist() == sizes


def test_labels_that_a_client_lacks_stay():
    client = int(np.flatnonzero((PROBLEM.population.counts == 0).any(1))[0])
    absent = np.asarray(PROBLEM.population.counts[client] == 0)
    x = PROBLEM.task.init(jax.random.key(3))
    result = make().local(jax.random.key(0), {"model": x}, (), bench.client(PROBLEM.population, client))
    np.testing.assert_array_equal(np.asarray(result.upload["model"]["w2"])[:, absent], 0)
    np.testing.assert_array_equal(np.broadcast_to(result.weight["model"]["b2"], 3) == 0, absent)
    with_all = make(labels=False).local(jax.random.key(0), {"model": x}, (), bench.client(PROBLEM.population, client))
    assert np.asarray(with_all.upload["model"]["w2"])[0, absent].all()


def test_widths_are_drawn_anew_in_every_round():
    method = make(redrawn=True, widths=(1.0, 0.5, 0.25))
    sizes = [[int(method.broadcast(None, client, clock)["bits"]) for client in range(7)] for clock in range(5)]
    assert len({tuple(s) for s in sizes}) == 5 and len(set(np.ravel(sizes))) == 3


def test_models_that_are_no_chain_are_named():
    with pytest.raises(ValueError, match="'heterofl' needs a chain of dense or convolutional layers that ends in one named 'head'; task 'quadratic'"):
        registry.make("heterofl", bench.TASK)
    with pytest.raises(ValueError, match="no hidden layer, or not one such head"):
        make(head="nothing")
    with pytest.raises(ValueError, match="'heterofl' refuses it: only what a client holds is sent"):
        run.method_of(Config(method="heterofl", wire_up="topk", options={"head": "2"}), PROBLEM.task)
