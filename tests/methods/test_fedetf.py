from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry
from fedjax_lab.methods.representation.fedetf import simplex

OPTIONS = {"head": "2", "tune_turns": 2, "batch_size": "full", "local_steps": 2, "lr": 0.1}


@functools.cache
def made(**options):
    return registry.make("fedetf", problems.classifier().task, **{**OPTIONS, **options})


def batch(rows):
    x, y = problems.classifier().examples(rows)
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y), "mask": jnp.ones(len(rows), bool)}


def data(client, counts=None):
    found = bench.client(problems.classifier().population, client)
    return found if counts is None else found._replace(counts=jnp.asarray(counts, jnp.float32))


@pytest.mark.parametrize("width, classes", [(4, 3), (10, 10), (64, 10)])
def test_the_simplex(width, classes):
    M = simplex(width, classes).astype(np.float64)
    np.testing.assert_allclose(M.T @ M, classes / (classes - 1) * (np.eye(classes) - 1 / classes), atol=1e-6)
    np.testing.assert_allclose(M.sum(1), 0, atol=1e-6)
    np.testing.assert_array_equal(simplex(width, classes), simplex(width, classes))
    assert np.abs(simplex(width, classes, seed=1) - M).max() > 0.01


def test_there_must_be_room_for_it():
    with pytest.raises(ValueError, match="the model has 2 features for 3 classes"):
        simplex(2, 3)
    with pytest.raises(ValueError, match="no leaf named 'head'"):
        made(head="head")
    with pytest.raises(ValueError, match="a head with one matrix .* have 2"):
        made(head="w")


def test_the_simplex_is_in_no_message_and_outputs_are_cosines_with_it():
    method = made()
    x = method.task.init(jax.random.key(0))
    assert sorted(x) == ["body", "projection", "scale"] and sorted(x["body"]) == ["b1", "w1"] and float(x["scale"]) == 10
    assert jax.tree.structure(method.broadcast(x, 0, 0)["model"]) == jax.tree.structure(x)
    outputs = method.task.apply(x, batch(np.arange(9)))
    z = method.task.features(x, batch(np.arange(9)))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(outputs, 10 * z @ simplex(4, 3), rtol=1e-5)


@pytest.mark.full
def test_even_counts_give_the_plain_cross_entropy():
    x, key = made().task.init(jax.random.key(0)), jax.random.key(1)
    ends = {n: made().local(key, {"model": x}, (), data(1, [n] * 3)).upload["model"] for n in (0, 1, 7)}
    for n in (1, 7):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ends[0], ends[n])
    other = made().local(key, {"model": x}, (), data(1, [9, 1, 0])).upload["model"]
    assert np.abs(other["body"]["w1"] - ends[0]["body"]["w1"]).max() > 1e-3


@pytest.mark.full
def test_the_personal_stage_moves_the_simplex_and_the_projection_only():
    method = made(tune_turns=1)
    x = method.task.init(jax.random.key(0))
    mine = method.personal(jax.random.key(1), x, (), data(1))
    trained = made(tune_turns=0).personal(jax.random.key(1), x, (), data(1))
    np.testing.assert_array_equal(trained["simplex"], simplex(4, 3))
    for name in ("body", "scale"):
        jax.tree.map(np.testing.assert_array_equal, mine[name], trained[name])
    assert np.abs(mine["simplex"] - simplex(4, 3)).max() > 1e-3 and np.abs(mine["projection"]["kernel"] - trained["projection"]["kernel"]).max() > 1e-3
    still = made(tune_epochs=0).personal(jax.random.key(1), x, (), data(1))
    jax.tree.map(np.testing.assert_array_equal, still, trained)
    whole = batch(problems.classifier().rows(1))
    assert method.task.loss(mine, whole, None)[0] < method.task.loss(trained, whole, None)[0]
