from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry, tree

PROBLEM = problems.classifier()
OPTIONS = {"head": "2", "embedding": 6, "hidden": 8, "lr": 0.1, "batch_size": "full", "local_steps": 1}


@functools.cache
def made(**options):
    return registry.make("hyperfl", PROBLEM.task, **{**OPTIONS, **options})


@functools.cache
def started():
    method = made()
    params = PROBLEM.task.init(jax.random.key(0))
    return method.init_server(jax.random.key(1), params, None), [method.init_client(jax.random.key(i), params, None) for i in range(7)]


@pytest.mark.full
def test_the_step_through_the_generator_is_the_chain_rule():
    """dL/dtheta first, then its pullback through h: what end-to-end differentiation gives."""
    server, rows = started()
    method, data = made(client_optimizer="sgd", head_epochs=0, limit=1e9), bench.client(PROBLEM.population, 1)
    result = method.local(jax.random.key(0), {"model": server.psi}, rows[1], data)
    whole = data.train.whole()

    def extractor(psi, e):
        return {k: v for k, v in method.personal(None, server._replace(psi=psi), rows[1]._replace(embedding=e), None).items() if "1" in k}

    theta, back = jax.vjp(extractor, server.psi, rows[1].embedding)
    slope = jax.grad(lambda theta: PROBLEM.task.loss({**theta, **rows[1].head}, whole, None)[0])(theta)
    of_psi, of_e = back(slope)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * g, rtol=1e-4, atol=1e-6), result.upload["model"], of_psi)
    np.testing.assert_allclose(result.client.embedding - rows[1].embedding, -0.1 * of_e, rtol=1e-4, atol=1e-6)


def test_no_leaf_of_the_client_is_sent_and_equal_embeddings_make_equal_models():
    server, rows = started()
    method = made()
    result = method.local(jax.random.key(0), method.broadcast(server, 0, 0), rows[1], bench.client(PROBLEM.population, 1))
    assert list(result.upload) == ["model"] and jax.tree.structure(result.upload["model"]) == jax.tree.structure(server.psi)
    private = {(6,), (4, 3), (3,), (5, 4)}  # an embedding, a head, an extractor's matrix
    assert not private & {leaf.shape for leaf in jax.tree.leaves((result.upload, method.broadcast(server, 0, 0)))}
    twins = [method.personal(None, server, row._replace(head=rows[0].head), None) for row in (rows[2], rows[2], rows[3])]
    jax.tree.map(np.testing.assert_array_equal, *twins[:2])
    assert np.abs(twins[0]["w1"] - twins[2]["w1"]).max() > 0.1


def test_models_start_with_the_variance_of_the_model_itself():
    method = made(embedding=64, hidden=128)
    params = PROBLEM.task.init(jax.random.key(0))
    server = method.init_server(jax.random.key(1), params, None)
    first = [method.personal(None, server, method.init_client(jax.random.key(i), params, None), None)["w1"] for i in range(20)]
    assert np.std(first) == pytest.approx(float(jnp.sqrt(jnp.mean(params["w1"] ** 2))), rel=0.2)


@pytest.mark.full
def test_each_group_is_cut_by_itself_and_the_head_trains_alone_without_a_rate():
    server, rows = started()
    data = bench.client(PROBLEM.population, 1)
    short = made(client_optimizer="sgd", limit=0.01).local(jax.random.key(0), {"model": server.psi}, rows[1], data)
    assert tree.norm(short.upload["model"]) == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert np.linalg.norm(short.client.embedding - rows[1].embedding) == pytest.approx(0.1 * 0.01, rel=1e-3)
    still = made(lr=0.0).local(jax.random.key(0), {"model": server.psi}, rows[1], data)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still.upload)) and (still.client.embedding == rows[1].embedding).all()
    assert np.abs(still.client.head["w2"] - rows[1].head["w2"]).max() > 1e-3


def test_statistics_and_a_missing_head_are_named():
    with pytest.raises(ValueError, match="'hyperfl' needs a model without normalization statistics; task 'normed'"):
        registry.make("hyperfl", problems.normed().task)
    with pytest.raises(ValueError, match="no leaf named 'top'"):
        made(head="top")
