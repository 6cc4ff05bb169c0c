from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry, tree
from fedjax_lab.parts import gates
from fedjax_lab.types import Facts

PROBLEM = problems.classifier()
KEY = jax.random.key(0)
KERNELS = {"conv": jnp.ones((3, 3, 1, 4)), "dense": jnp.ones((16, 3)), "bias": jnp.ones(7)}


@functools.cache
def made(**options):
    return registry.make("pfedgate", PROBLEM.task, **{"lr": 0.1, "batch_size": "full", "local_steps": 2, **options})


def first(method, i=1):
    example = {"x": jax.ShapeDtypeStruct((5,), jnp.float32)}
    return method.init_client(jax.random.key(i), None, Facts(jnp.int32(i), 3, None, example))


def forced(row, by=50.0):
    """A gate that says 1, whatever it sees."""
    return {k: p if k == "input" else {**p, "scale": 0 * p["scale"], "shift": by + 0 * p["shift"]} for k, p in row.items()}


@pytest.mark.full
@pytest.mark.parametrize("most", [1, 3, 5])
def test_blocks_cover_every_tensor_once_and_keep_within_the_budget(most):
    found = gates.blocks(KERNELS, most)
    assert found.size.sum() == 36 + 48 + 7 and found.first.sum() == 3 and max(at[1] for at in found.at) <= most
    numbered = found.spread(jnp.arange(1.0, len(found.size) + 1), KERNELS)
    assert np.bincount(np.concatenate([np.ravel(v) for v in jax.tree.leaves(numbered)]).astype(int))[1:].tolist() == found.size.tolist()
    np.testing.assert_array_equal(found.changed(numbered), True)
    rng = np.random.default_rng(0)
    for share in (1.0, *(max(share, gates.least(found)) for share in (0.7, 0.45))):
        kept = np.array(jax.vmap(lambda v, s=share: found.kept(v, jnp.float32(s)))(jnp.asarray(rng.random((50, len(found.size))), jnp.float32)))
        assert kept[:, found.first].all() and (kept.all() if share == 1 else not kept.all() or most == 1)
        for group in (found.dense, ~found.dense):
            assert (kept[:, group] @ found.size[group]).max() <= share * found.size[group].sum() + 1e-3


def test_what_is_worth_most_for_its_size_is_kept():
    found = gates.blocks({"w": jnp.zeros((5, 4))}, 5)
    np.testing.assert_array_equal(found.kept(jnp.array([0.0, 0.3, 0.9, 0.31, 0.6]), jnp.float32(0.6)), [True, False, True, False, True])
    np.testing.assert_array_equal(found.kept(jnp.array([0.0, 0.3, 0.9, 0.31, 0.2]), jnp.float32(0.6)), [True, True, True, False, False])  # 0.3 as 0.31
    np.testing.assert_array_equal(found.kept(jnp.ones(5), jnp.float32(0.2)), found.first)


@pytest.mark.full
def test_dropped_blocks_have_no_gradient_and_others_do():
    method, x = made(), PROBLEM.task.init(KEY)
    end = made(local_steps=1).local(KEY, {"model": x}, first(method), bench.client(PROBLEM.population, 1))
    found = gates.blocks(x, 5)
    theta = method.personal(None, x, first(method), bench.client(PROBLEM.population, 1))
    used, moved = np.array(found.changed(theta)), np.array(found.changed(end.upload["model"]))
    assert not moved[~used & (found.size > 1)].any() and 0 < used.sum() < len(used)
    assert moved.any()
    assert int(end.upload["bits"]) == 32 * found.size[moved].sum() + len(moved)
    assert (found.size * used).sum() <= 0.5 * found.size.sum()


@pytest.mark.full
@pytest.mark.parametrize("separate", [False, True])
def test_an_open_gate_is_fedavg(separate):
    """And it has no slope there, so it stays open."""
    method, theirs = made(sparsity=(1.0,), limit=1e9, separate=separate), registry.make("fedavg", PROBLEM.task, lr=0.1, batch_size="full", local_steps=2)
    x, data = PROBLEM.task.init(KEY), bench.client(PROBLEM.population, 1)
    row = forced(first(method))
    mine = method.local(KEY, {"model": x}, row, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mine.upload["model"],
                 theirs.local(KEY, {"model": x}, (), data).upload["model"])
    if not separate:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine.client, row)


@pytest.mark.full
def test_padding_and_a_batch_of_one_are_no_matter():
    row, x = first(made()), jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    whole = gates.opened(row, {"x": x[:3], "mask": jnp.ones(3, bool)})["pick"]
    padded = gates.opened(row, {"x": x.at[3].set(jnp.nan), "mask": jnp.arange(4) < 3})["pick"]
    np.testing.assert_allclose(whole, padded, rtol=1e-5)
    one = gates.opened(row, {"x": x[:1], "mask": jnp.ones(1, bool)})["pick"]
    np.testing.assert_allclose(one, 0.5, atol=1e-5)
    images = gates.gate(KEY, (4, 4, 3), 6, ("pick",))
    assert gates.opened(images, {"x": jnp.zeros((2, 4, 4, 3), jnp.uint8), "mask": jnp.ones(2, bool)})["pick"].shape == (6,)


@pytest.mark.full
def test_gate_and_model_move_in_turns():
    method, x, data = made(mode="turns"), PROBLEM.task.init(KEY), bench.client(PROBLEM.population, 1)
    result = method.local(KEY, {"model": x}, first(method), data._replace(allowance=jnp.int32(1)))
    assert not any(np.any(v) for v in jax.tree.leaves(result.upload["model"]))
    assert tree.norm(tree.sub(result.client, first(method))) > 1e-3
    assert int(method.steps(jnp.int32(9))) == 4


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="keeps the first block of every tensor, 0.231 of 'tiny'; sparsity 0.1 is less"):
        made(sparsity=(1.0, 0.1))
    with pytest.raises(ValueError, match="'pfedgate' needs inputs 'x' that a gate can read"):
        bench.start(registry.make("pfedgate", bench.TASK, sparsity=(0.5,)))
