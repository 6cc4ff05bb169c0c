from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import models, registry, tree
from fedjax_lab.parts.leaves import paths

EXAMPLE = {"x": jnp.zeros((1, 4, 4, 2)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
TASK = models.build("resnet8", EXAMPLE, 3, norm="weight_standardized", blocks=(1,), width=4, lowering="xla")
BATCH = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 2)), jnp.float32), "y": jnp.arange(5) % 3, "mask": jnp.ones(5, bool)}


@functools.cache
def params():
    return TASK.init(jax.random.key(0))


outputs = jax.jit(TASK.apply)
slope = jax.jit(jax.grad(lambda p: TASK.loss(p, BATCH, None)[0]))


def kernels(of):
    return {k: v for k, v in paths(of).items() if k.endswith("kernel") and v.ndim == 4}


@pytest.mark.full
def test_scale_and_shift_of_raw_kernels_do_not_count():
    other = jax.tree.map_with_path(lambda path, x: 3.0 * x + 0.7 if x.ndim == 4 else x, params())
    assert len(kernels(params())) == 3
    np.testing.assert_allclose(outputs(other, BATCH), outputs(params(), BATCH), rtol=1e-3, atol=1e-4)


def test_gradients_of_raw_kernels_are_at_right_angles_to_them():
    gradient = kernels(slope(params()))
    for name, W in kernels(params()).items():
        centered = W - W.mean((0, 1, 2))
        along = jnp.sum(gradient[name] * centered, (0, 1, 2)) / (jnp.linalg.norm(gradient[name]) * jnp.linalg.norm(W))
        assert float(jnp.abs(gradient[name]).max()) > 1e-4
        np.testing.assert_allclose(along, 0, atol=1e-5)


def test_an_image_is_alone_and_the_model_has_no_statistics():
    one = {k: v[2:3] for k, v in BATCH.items()}
    np.testing.assert_allclose(outputs(params(), one)[0], outputs(params(), BATCH)[2], rtol=1e-4, atol=1e-5)
    assert "stats" not in params()
    with pytest.raises(ValueError, match="'fedwon' needs a model without normalization statistics; .* choose norm=weight_standardized"):
        registry.make("fedwon", models.build("resnet8", EXAMPLE, 3, norm="batch"))


def test_it_averages_raw_kernels():
    """The mean of standardized kernels is no standardized kernel: messages hold what the task's parameters are."""
    method = registry.make("fedwon", TASK)
    assert jax.tree.structure(method.broadcast(params(), 0, 0)["model"]) == jax.tree.structure(params())
    assert {"gain", "bias", "kernel"} == {k.split("/")[-1] for k in paths(params())}
    assert tree.size(params()) == 1 * 3 * 3 * 2 * 4 + 2 * 3 * 3 * 4 * 4 + 3 * (4 + 4) + 4 * 3 + 3
