"""From module to Task: the mask, the loss, statistics, inputs; numpy forward passes written from the definition."""
from __future__ import annotations

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lab import models
from fedjax_lab.models.task import blank, make_task, masked_mean

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of the time here


def batch_of(shape=(6,), size=5, classes=3, seed=0, **more):
    draw = np.random.default_rng(seed)
    return {"x": jnp.asarray(draw.normal(size=(size, *shape)), jnp.float32), "y": jnp.asarray(draw.integers(0, classes, size), jnp.int32),
            "mask": jnp.ones(size, bool), **more}


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, **tolerance)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=8, max_size=8))
def test_masked_mean_is_the_mean_of_what_the_mask_keeps(rows):
    values, mask = np.array([v for v, _ in rows], np.float32), np.array([m for _, m in rows])
    poisoned = np.where(mask, values, np.nan)
    mean, gradient = jax.value_and_grad(masked_mean)(jnp.asarray(poisoned), jnp.asarray(mask))
    want = values[mask].mean() if mask.any() else 0
    np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, mask / max(mask.sum(), 1), rtol=1e-6)


POISON = {"x": jnp.nan, "y": 2 ** 31 - 1, "extra": -jnp.inf}


class Ratio(nn.Module):
    """Something that turns a bad row into a bad gradient if it is let in."""

    inputs = ("x", "extra")

    @nn.compact
    def __call__(self, x, extra):
        return nn.Dense(3)(jnp.sqrt(jnp.abs(x) + 1) * extra)


@pytest.mark.parametrize("module", [Ratio(), models.ResNet(3, (1,), 2, norm="batch", lowering="xla"), models.MLP((4,), 3)], ids=["ratio", "batch", "mlp"])
def test_padding_never_matters(module):
    """Poisoned rows change no bit; a padded batch is the batch without its padding."""
    shape = (4, 4, 1) if isinstance(module, models.ResNet) else (6,)
    batch = batch_of(shape, extra=jnp.ones((5, 1)))
    batch["mask"] = jnp.array([True, False, True, True, False])
    bad = {k: v if k == "mask" else v.at[np.array([1, 4])].set(POISON[k]) for k, v in batch.items()}
    task = models.classification("t", module, batch)
    params = jit(task.init)(jax.random.key(0))
    train = jit(jax.value_and_grad(task.loss, has_aux=True))
    clean, poisoned = train(params, batch, jax.random.key(1)), train(params, bad, jax.random.key(1))
    assert_trees_close(poisoned, clean, rtol=0)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(poisoned))
    short = {k: v[np.array([0, 2, 3])] for k, v in batch.items()}
    assert_trees_close(train(params, short, jax.random.key(1)), clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_empty_batch_is_worth_nothing(norm):
    batch = batch_of((4, 4, 1)) | {"mask": jnp.zeros(5, bool)}
    task = models.classification("t", models.ResNet(3, (1,), 2, norm=norm, groups=1, lowering="xla"), batch)
    params = jit(task.init)(jax.random.key(0))
    (loss, aux), gradient = jit(jax.value_and_grad(task.loss, has_aux=True))(params, batch, jax.random.key(1))
    assert loss == 0 and aux.metrics["accuracy"] == 0
    assert all((a == 0).all() for a in jax.tree.leaves(gradient))
    if norm == "batch":
        assert_trees_close(aux.stats, params["stats"], rtol=0)


@pytest.mark.parametrize("name", ["logreg", "2nn"])
def test_forward_pass_and_loss_in_numpy(name):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    batch = {"x": jnp.asarray(pixels), "y": jnp.arange(5), "mask": jnp.array([True] * 4 + [False])}
    task = models.build(name, batch, 10)
    params = jax.tree.map(lambda a: a + 0.01, jit(task.init)(jax.random.key(3)))
    layers = [params[k] for k in ("body_0", "body_1", "head") if k in params]
    z = pixels.reshape(5, 784).astype(np.float64) / 255
    for layer in layers:
        z = np.maximum(z, 0) @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
    probabilities = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    values = -np.log(probabilities[np.arange(5), np.arange(5)])
    outputs = task.apply(params, batch)
    np.testing.assert_allclose(outputs[:4], z[:4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(task.metrics(outputs, batch)["loss"][:4], values[:4], rtol=1e-4)
    np.testing.assert_array_equal(task.metrics(outputs, batch)["accuracy"][:4], z[:4].argmax(1) == np.arange(4))
    loss, aux = task.loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, values[:4].mean(), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["accuracy"], (z[:4].argmax(1) == np.arange(4)).mean(), rtol=1e-6)


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


def test_sequences_average_over_their_labelled_positions():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    y = np.array([[1, 2, -1, -1], [0, 0, 4, 3], [-1, -1, -1, -1]])
    batch = {"x": jnp.asarray(logits), "y": jnp.asarray(y), "mask": jnp.array([True, True, True])}
    task = models.classification("t", Positions(), batch)
    found = task.metrics(task.apply({}, batch), batch)
    for i, length in enumerate([2, 4, 0]):
        steps = range(length)
        nats = [np.log(np.exp(logits[i, t]).sum()) - logits[i, t, y[i, t]] for t in steps]
        np.testing.assert_allclose(found["loss"][i], np.mean(nats) if nats else 0, rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"][i], np.mean([logits[i, t].argmax() == y[i, t] for t in steps]) if nats else 0)
    np.testing.assert_allclose(task.loss({}, batch, None)[0], found["loss"].mean(), rtol=1e-6)


def test_the_squared_hinge_is_of_each_class_against_the_others():
    batch = batch_of((3,), 4) | {"y": jnp.array([0, 2, 1, 2])}
    task = models.build("svm", batch, 3)
    params = jit(task.init)(jax.random.key(0))
    outputs = np.asarray(task.apply(params, batch))
    want = [sum(max(0, 1 - (1 if c == y else -1) * outputs[i, c]) ** 2 for c in range(3)) for i, y in enumerate([0, 2, 1, 2])]
    found = task.metrics(outputs, batch)
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], outputs.argmax(1) == [0, 2, 1, 2])


def test_squared_error_takes_a_column_or_a_vector_and_averages_outputs():
    batch = batch_of((3,), 4) | {"y": jnp.arange(4.0)}
    task = models.build("linreg", batch, 1)
    params = jit(task.init)(jax.random.key(0))
    want = (np.asarray(batch["x"] @ params["head"]["kernel"])[:, 0] - np.arange(4)) ** 2
    found = task.metrics(task.apply(params, batch), batch)
    assert set(found) == {"loss"}
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    two = batch | {"y": jnp.stack([jnp.arange(4.0), jnp.ones(4)], 1)}
    both = models.build("linreg", two, 2)
    outputs = both.apply(both.init(jax.random.key(0)), two)
    np.testing.assert_allclose(both.metrics(outputs, two)["loss"], ((outputs - two["y"]) ** 2).mean(1), rtol=1e-6)


def test_images_are_scaled_and_normalized_and_other_types_pass():
    pixels = jnp.arange(12, dtype=jnp.uint8).reshape(1, 12) * 20
    batch = {"x": pixels, "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
    seen = models.classification("t", Positions(), batch).apply({}, batch)
    np.testing.assert_allclose(seen, np.asarray(pixels) / 255, rtol=1e-6)
    assert seen.dtype == jnp.float32
    shifted = models.classification("t", Positions(), batch, normalize=(0.5, 0.25)).apply({}, batch)
    np.testing.assert_allclose(shifted, (np.asarray(pixels) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    tokens = batch | {"x": pixels.astype(jnp.int32)}
    np.testing.assert_array_equal(models.classification("t", Positions(), tokens).apply({}, tokens), tokens["x"])


class Statistics(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        where = None if mask is None else mask[:, None]
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=where))


def test_statistics_are_a_tree_of_their_own():
    batch = batch_of()
    batch["mask"] = jnp.array([True, True, True, False, False])
    task = models.classification("t", Statistics(), batch)
    params = jit(task.init)(jax.random.key(0))
    assert set(params) == {"params", "stats"}
    real = np.asarray(batch["x"])[:3]
    (_, aux), gradient = jit(jax.value_and_grad(task.loss, has_aux=True))(params, batch, jax.random.key(1))
    new = aux.stats["BatchNorm_0"]
    np.testing.assert_allclose(new["mean"], 0.1 * real.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * real.var(0), rtol=1e-4)
    assert all((g == 0).all() for g in jax.tree.leaves(gradient["stats"]))
    assert all((g != 0).any() for g in jax.tree.leaves(gradient["params"]["Dense_0"]))
    moved = {**params, "stats": aux.stats}
    dense = params["params"]["Dense_0"]
    running = (np.asarray(batch["x"]) - new["mean"]) / np.sqrt(new["var"] + 1e-5) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(task.apply(moved, batch)[:3], running[:3], rtol=1e-4, atol=1e-5)
    in_batch = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-5) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(task.apply(moved, batch, jax.random.key(0))[:3], in_batch, rtol=1e-3, atol=1e-4)
    assert_trees_close(task.loss(moved, batch, None)[1].stats, moved["stats"], rtol=0)


def test_a_key_means_training_mode():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.5, deterministic=not train)(x)

    batch = batch_of((50,))
    task = models.classification("t", Dropped(), batch)
    assert (task.apply({}, batch) == batch["x"]).all()
    one, two = (task.apply({}, batch, jax.random.key(i)) for i in (1, 2))
    assert (one == 0).any() and (one != two).any()
    np.testing.assert_array_equal(one, task.apply({}, batch, jax.random.key(1)))


def test_the_example_of_the_documentation_runs():
    space = {"nn": nn, "jnp": jnp, "jax": jax, "make_task": make_task}
    for example in doctest.DocTestParser().get_examples(make_task.__doc__):
        exec(example.source, space)  # noqa: S102
    task, params = space["task"], space["params"]
    batch = {"x": jnp.array([[1.0, 2, 3]]), "y": jnp.array([2.0]), "mask": jnp.ones(1, bool)}
    dense = params["Dense_0"]
    want = (np.array([1.0, 4, 9]) @ dense["kernel"][:, 0] + dense["bias"][0] - 2) ** 2
    np.testing.assert_allclose(task.loss(params, batch, None)[0], want, rtol=1e-5)


def test_blank_keeps_types_and_real_rows():
    batch = batch_of() | {"mask": jnp.array([False, True, True, True, False])}
    clean = blank(batch)
    assert {k: v.dtype for k, v in clean.items()} == {k: v.dtype for k, v in batch.items()}
    np.testing.assert_array_equal(clean["x"][1:4], batch["x"][1:4])
    assert (clean["x"][np.array([0, 4])] == 0).all()


def test_errors_name_the_thing_and_the_choices():
    batch = batch_of()
    with pytest.raises(ValueError, match="model 'vgg' is not one of logreg, svm, linreg"):
        models.build("vgg", batch, 3)
    with pytest.raises(ValueError, match="task 'gcn' needs the array 'edges'; the example batch has mask, x, y"):
        models.build("gcn", batch, 3)

    class Cache(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("cache", "last", lambda: x)
            return x

    with pytest.raises(ValueError, match="collection 'cache'"):
        models.classification("t", Cache(), batch).init(jax.random.key(0))
