from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts import clients, leaves
from fedjax_lab.parts.cohorts.bernoulli import bernoulli
from fedjax_lab.parts.moving import moving, scaled, stepped
from fedjax_lab.parts.oracles.directions import corrected, full_gradient, proximal
from fedjax_lab.registry import training
from fedjax_lab.types import Aux, Census, ClientData, Cohort, Stream, View

MODEL = {"params": jnp.array([1.0, 2.0]), "stats": jnp.array([3.0])}


def test_statistics_ride_along():
    assert [x.tolist() for x in jax.tree.leaves(moving(MODEL))] == [[1, 2], [0]]
    assert [x.tolist() for x in jax.tree.leaves(scaled(2.0, MODEL))] == [[2, 4], [3]]
    assert [x.tolist() for x in jax.tree.leaves(stepped(2.0, MODEL, MODEL))] == [[3, 6], [6]]
    zero = lambda key, y, batch: (0.0, jax.tree.map(jnp.zeros_like, y), ())
    for direction in (corrected(zero, MODEL), proximal(zero, 1.0, jax.tree.map(jnp.zeros_like, MODEL))):
        assert [x.tolist() for x in jax.tree.leaves(direction(None, MODEL, None)[1])] == [[1, 2], [0]]


def data_of(size: int, capacity: int) -> ClientData:
    x = np.random.default_rng(0).normal(size=(capacity, 2)).astype(np.float32)
    stream = Stream({"x": jnp.asarray(x)}, jnp.zeros(1, jnp.int32), jnp.array([size], jnp.int32))
    view = View(stream, jnp.int32(0), capacity)
    return ClientData(jnp.int32(0), jnp.int32(0), view, view, jnp.zeros(0), jnp.int32(1))


def loss(params, batch, key):
    return jnp.where(batch["mask"], jnp.tanh(batch["x"] @ params), 0).sum() / jnp.maximum(batch["mask"].sum(), 1), Aux()


@pytest.mark.parametrize("batch_size", [1, 3, 7, "full"])
def test_a_full_gradient_does_not_depend_on_the_batches_nor_on_the_allowance(batch_size):
    class task:
        pass

    task.loss, params, data = staticmethod(loss), jnp.array([0.3, -0.2]), data_of(7, 9)
    got = full_gradient(jax.random.key(0), task, params, data, training(batch_size=batch_size, local_steps=4))
    expected = jax.grad(lambda p: loss(p, {**data.train.whole()}, None)[0])(params)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert not full_gradient(jax.random.key(0), task, params, data, training(), wanted=jnp.array(False)).any()
    assert not full_gradient(jax.random.key(0), task, params, data_of(0, 9), training(batch_size=batch_size)).any()


def test_weights_and_their_sums():
    size, mask, steps = jnp.array([4, 0, 2, 9]), jnp.array([True, True, True, False]), jnp.array([5, 7, 2, 9])
    cohort = Cohort(jnp.arange(4), mask, size, steps, 4, jnp.int32(0))
    assert clients.heard(cohort) == 2.0
    np.testing.assert_allclose([clients.mean_steps(cohort, w) for w in ("examples", "uniform")], [24 / 6, 7 / 2], rtol=1e-6)
    nobody = cohort._replace(mask=~cohort.mask, size=0 * size)
    assert clients.heard(nobody) == 0 and clients.mean_steps(nobody, "uniform") == 0
    people = Census(4, np.asarray(size))
    assert [float(clients.mass(w, people)) for w in ("examples", "uniform")] == [15.0, 3.0]
    assert [float(clients.weigh(w, data_of(3, 4))) for w in ("examples", "uniform")] == [3.0, 1.0]


def test_everybody_decides_alone_with_their_own_probability():
    who = bernoulli(40, 20, q=(0.9, 0.1))
    rounds = jax.vmap(lambda k: who.draw(k, (), jnp.int32(0)))(jax.random.split(jax.random.key(3), 2000))
    ids, mask = rounds.ids, np.asarray(rounds.mask, np.float64)
    assert (ids == jnp.arange(40)).all() and who.slots == 40
    np.testing.assert_allclose(mask.mean(0), np.tile([0.9, 0.1], 20), atol=0.035)
    together = np.corrcoef(mask.T)[~np.eye(40, dtype=bool)]
    assert np.abs(together).max() < 0.12


def test_leaves_by_name():
    model = {"body": {"Norm_0": {"scale": 1}, "kernel": 2}, "head": {"kernel": 3}}
    assert leaves.named(model, "norm", "bn") == {"body": {"Norm_0": {"scale": True}, "kernel": False}, "head": {"kernel": False}}
    with pytest.raises(ValueError, match="no leaf named 'tail'; it has body/norm_0/scale, body/kernel, head/kernel"):
        leaves.named(model, "tail")
