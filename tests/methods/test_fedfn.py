from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest
from flax import linen as nn

import fedjax_lab
from fedjax_lab import keys, models, registry
from fedjax_lab.parts.lengths import unit

EXAMPLE = {"x": jnp.zeros((1, 5)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 2, 4)])
def test_every_example_has_the_length_of_its_own(shape):
    h = drawn(*shape)
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(unit(h) ** 2, range(1, h.ndim))), 1, rtol=1e-6)
    np.testing.assert_allclose(unit(h)[2], unit(h[2:3])[0], rtol=1e-6)


@pytest.mark.full
def test_a_zero_vector_stays_zero_and_has_no_slope():
    h = drawn(3, 4).at[1].set(0)
    assert not unit(h)[1].any()
    slope = jax.grad(lambda h: jnp.sum(unit(h) * jnp.arange(4.0)))(h)
    assert np.isfinite(slope).all() and not slope[1].any() and slope[0].any()


@pytest.mark.full
@pytest.mark.parametrize("options, square", [({}, 6.0), ({"length": 2.0}, 4.0)], ids=["root", "constant"])
def test_features_have_the_length_asked_for(options, square):
    task = models.build("mlp", EXAMPLE, 3, widths=(8, 6))
    normalized = registry.make("fedfn", task, **options).task
    z = normalized.features(task.init(jax.random.key(0)), {"x": drawn(9, 5)})
    assert z.shape == (9, 6) and all(np.isclose(s, square, rtol=1e-5) or s == 0 for s in np.sum(np.square(z), 1))


def test_without_biases_the_size_of_the_input_does_not_count():
    x = {"x": drawn(9, 5)}
    for bias, alike in ((False, True), (True, False)):
        task = models.build("mlp", EXAMPLE, 3, widths=(8, 6), bias=bias)
        params = jax.tree.map(lambda w: w + 0.1, task.init(jax.random.key(0)))
        normalized = registry.make("fedfn", task).task
        one, more = normalized.apply(params, x), normalized.apply(params, {"x": 3.0 * x["x"]})
        assert np.allclose(one, more, rtol=1e-4, atol=1e-5) == alike
        assert not np.allclose(task.apply(params, x), task.apply(params, {"x": 3.0 * x["x"]}))


def test_once_at_the_end_is_after_every_layer():
    task = models.build("mlp", EXAMPLE, 3, widths=(8, 6), bias=False)
    params, x = task.init(jax.random.key(0)), drawn(9, 5)
    h = x
    for name in ("body_0", "body_1"):
        h = unit(nn.relu(h @ params[name]["kernel"]))
    last = registry.make("fedfn", task, length=1.0, tau=0.5).task
    np.testing.assert_allclose(last.apply(params, {"x": x}), 2 * h @ params["head"]["kernel"], rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_layer_normalization_after_every_layer_is_a_model():
    task = models.build("mlp", EXAMPLE, 3, widths=(8, 6), bias=False, norm="layer")
    params, x = task.init(jax.random.key(0)), drawn(9, 5)
    assert sorted(params) == ["body_0", "body_1", "head"] and all(set(p) == {"kernel"} for p in params.values())
    h = x
    for name in ("body_0", "body_1"):
        h = nn.relu(h @ params[name]["kernel"])
        h = h - h.mean(1, keepdims=True)
        h = np.sqrt(h.shape[1]) * unit(h)
    np.testing.assert_allclose(task.apply(params, {"x": x}), h @ params["head"]["kernel"], rtol=1e-3, atol=1e-3)


def test_models_without_a_split_or_with_statistics_are_refused():
    with pytest.raises(ValueError, match="'fedfn' needs a model with features and a head"):
        bench.make("fedfn")
    images = {**EXAMPLE, "x": jnp.zeros((1, 8, 8, 1))}
    with pytest.raises(ValueError, match="'fedfn' needs a model without normalization statistics"):
        registry.make("fedfn", models.build("resnet8", images, 3, norm="batch"))


@pytest.mark.full
def test_what_is_evaluated_is_the_normalized_model():
    problem = problems.classifier()
    method = bench.make("fedfn", problem.task, length=5.0, lr=0.0)
    _, record = bench.run(method, problem.population, task=problem.task, rounds=1)
    x = problem.task.init(keys.purpose(jax.random.key(0), "params"))
    examples = {k: jnp.asarray(v) for k, v in problem.population.test.examples.items()}
    values = [np.mean(task.metrics(task.apply(x, examples), examples)["loss"]) for task in (method.task, problem.task)]
    assert abs(values[0] - values[1]) > 1e-3
    np.testing.assert_allclose(record.evaluation["test_loss"], values[0], rtol=1e-5)


@pytest.mark.full
def test_what_is_handed_back_and_loaded_is_the_normalized_model(tmp_path):
    run = fedjax_lab.train(method="fedfn", task="digits_mlp:widths=8", clients=4, cohort=2, rounds=1, workdir=str(tmp_path))
    x = np.full((2, 8, 8, 1), 100, np.uint8) * np.array([[[[1]]], [[[2]]]], np.uint8)
    h = run.model.task.features(run.model.params, {"x": x})
    np.testing.assert_allclose(np.sum(np.square(h), 1), 8, rtol=1e-5)
    np.testing.assert_array_equal(fedjax_lab.load(str(tmp_path)).predict(x), run.model.predict(x))
