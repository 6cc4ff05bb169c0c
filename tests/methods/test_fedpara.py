from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import models, registry, tree
from fedjax_lab.parts.transforms import factored

EXAMPLE = {"x": jnp.zeros((1, 20)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
MLP = models.build("mlp", EXAMPLE, 10, widths=(12,))
IMAGES = models.build("cnn", {**EXAMPLE, "x": jnp.zeros((1, 8, 8, 1))}, 10, widths=(4, 6), hidden=8)


def drawn(shape, R, form="hadamard"):
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s) for k, s in factored.shapes(shape, R, form).items()}


def test_a_product_of_low_ranks_has_full_rank():
    m, n, R = 49, 36, 6
    rng = np.random.default_rng(0)
    one, two = ((rng.normal(size=(m, R)) @ rng.normal(size=(R, n))) for _ in range(2))
    assert R == factored.rank((m, n), 0.0) and np.linalg.matrix_rank(one * two) == n
    low = drawn((m, n), R, "low_rank")
    assert np.linalg.matrix_rank(low["x"] @ low["y"].T) == 2 * R < n
    assert 2 * sum(v.size for v in drawn((m, n), R).values()) == sum(v.size for v in low.values()) == 2 * R * (m + n)


@pytest.mark.parametrize("shape", [(196, 128), (5, 5, 32, 64), (40, 30), (3, 3, 8, 8)])
def test_the_largest_share_saves_nothing_and_the_numbers_are_counted(shape):
    *window, m, n = shape
    for share in (0.0, 0.3, 1.0):
        R = factored.rank(shape, share)
        count = 2 * sum(int(np.prod(s)) for s in factored.shapes(shape, R, "hadamard").values())
        assert count == (2 * R * (m + n + R * int(np.prod(window))) if window else 2 * R * (m + n))
        assert share < 1 or abs(count - np.prod(shape)) <= 2 * (m + n + 2 * R * int(np.prod(window)))
    assert factored.rank(shape, 0.0) == np.ceil(np.sqrt(min(m, n)))


def test_a_kernel_is_what_the_sums_say():
    half = drawn((3, 2, 4, 5), 3)
    expected = np.zeros((3, 2, 4, 5))
    for a in range(3):
        for b in range(3):
            expected += np.einsum("hw,i,o->hwio", half["t"][a, b], half["i"][b], half["o"][a])
    np.testing.assert_allclose(factored.product({k: jnp.asarray(v) for k, v in half.items()}, (3, 2, 4, 5)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", [MLP, pytest.param(IMAGES, marks=pytest.mark.full)], ids=["mlp", "cnn"])
def test_the_model_is_the_tasks_own(task):
    """With all factors at hand, outputs are those of the task at the products, and only tensors below the head are factored."""
    smaller = registry.make("fedpara", task).task
    params = smaller.init(jax.random.key(1))
    batch = {k: jnp.ones((2, *v.shape[1:]), v.dtype) for k, v in EXAMPLE.items()} if task is MLP else {"x": jnp.ones((2, 8, 8, 1))}
    assert set(params["head"]) == {"bias", "kernel"} and smaller.apply(params, batch).shape == (2, 10)

    def made(part):
        if not isinstance(part, dict) or "one" not in part:
            return part
        halves = [np.asarray(part[h]["x"] @ part[h]["y"].T) if "x" in part[h] else
                  np.einsum("abhw,ao,bi->hwio", part[h]["t"], part[h]["o"], part[h]["i"]) for h in ("one", "two")]
        return halves[0] * halves[1]

    whole = jax.tree.map(made, params, is_leaf=lambda p: isinstance(p, dict) and "one" in p)
    np.testing.assert_allclose(smaller.apply(params, batch), task.apply(whole, batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task, form", [(MLP, "hadamard"), (MLP, "low_rank"), pytest.param(IMAGES, "hadamard", marks=pytest.mark.full),
                                        pytest.param(IMAGES, "low_rank", marks=pytest.mark.full)], ids=["mlp", "mlp-low-rank", "cnn", "cnn-low-rank"])
def test_a_matched_start_has_the_models_variance(task, form):
    whole = task.init(jax.random.key(0))
    matched = factored.factored(task, 0.3, form=form, start="matched", ordinary="head").init(jax.random.key(0))
    name = "body_0" if task is MLP else "convs_1"
    kernel, part = whole[name]["kernel"], matched[name]["kernel"]
    halves = [factored.product(half, kernel.shape) for half in part.values()]
    assert 0.2 < float(jnp.mean(jnp.prod(jnp.stack(halves), 0) ** 2) / jnp.mean(kernel**2)) < 5


def test_without_private_factors_there_is_one_half():
    method = registry.make("pfedpara", MLP)
    x = method.task.init(jax.random.key(0))
    kernel = {"one": x["body_0"]["kernel"]["one"], "two": tree.zeros_like(x["body_0"]["kernel"]["two"])}
    batch = {"x": jnp.ones((2, 20))}
    one = MLP.apply({**x, "body_0": {**x["body_0"], "kernel": kernel["one"]["x"] @ kernel["one"]["y"].T}}, batch)
    np.testing.assert_allclose(method.task.apply({**x, "body_0": {**x["body_0"], "kernel": kernel}}, batch), one, rtol=1e-4, atol=1e-4)


def test_messages_hold_the_shared_factors_alone():
    para, personal = registry.make("fedpara", MLP, share=0.5), registry.make("pfedpara", MLP)
    x = para.task.init(jax.random.key(0))
    R = factored.rank((20, 12), 0.5)
    sizes = [tree.size(m.broadcast(x, 0, 0)["model"]) for m in (para, personal)]
    assert sizes == [2 * R * 32 + 12 + 130, R * 32 + 12 + 130]
    assert not [path for path in personal.broadcast(x, 0, 0)["model"] if "two" in path]


def test_a_model_without_tensors_is_refused():
    with pytest.raises(ValueError, match="no matrix or kernel without 'head' in its name"):
        registry.make("fedpara", problems.bowl().task)
