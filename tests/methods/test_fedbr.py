from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_fedimpro import CLASSIFIER, end, flat

from fedjax_lab import registry
from fedjax_lab.methods.optimization import fedbr
from fedjax_lab.parts.oracles.directions import cosine
from fedjax_lab.types import Census


@pytest.mark.full
def test_without_weights_it_is_fedavg():
    """The batches are those of the third exchange of a round, so that steps on all the data are compared."""
    same = {"batch_size": "full", "local_steps": 3}
    expected = flat(end("fedavg", weighting="uniform", **same)[0])
    np.testing.assert_allclose(flat(end("fedbr", mu=0.0, lam=0.0, **same)[0]), expected, rtol=1e-4, atol=1e-6)
    for options in ({"mu": 0.0}, {"lam": 0.0}):
        assert np.abs(flat(end("fedbr", **{"mu": 2.0, "lam": 2.0, **options}, **same)[0]) - expected).max() > 1e-3


@pytest.mark.full
def test_items_are_means_of_their_owners_examples():
    people = CLASSIFIER.population
    state, record = end("fedbr", rounds=1, mixed=400)
    x, size = people.train.examples["x"], people.train.size
    owner = np.repeat(np.arange(people.clients), size)
    centers = np.stack([x[owner == i].mean(0) for i in range(people.clients)])
    np.testing.assert_allclose(state.server.pseudo, centers[np.asarray(state.server.owners)], atol=0.35)
    single, _ = end("fedbr", rounds=1, mixed=1)
    for item, i in zip(np.asarray(single.server.pseudo), np.asarray(single.server.owners)):
        assert np.abs(x[owner == i] - item).sum(1).min() < 1e-6
    counts = np.bincount(np.asarray(state.server.owners), minlength=people.clients)
    assert record.rounds["all_bytes_up"][0].tolist() == [-(-(4 + n * x[0].nbytes * 8) // 8) for n in counts]


@pytest.mark.full
def test_pseudo_samples_stay():
    one, three = (end("fedbr", rounds=r)[0].server for r in (1, 3))
    np.testing.assert_array_equal(one.pseudo, three.pseudo)


def pieces(mode="mean", **options):
    """One local step of one client, by hand: (method, server, data)."""
    people = CLASSIFIER.population
    method = registry.make("fedbr", CLASSIFIER.task, lr=0.1, batch_size=4, local_steps=1, mode=mode, **options)
    example = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in people.train.examples.items()}
    server = method.init_server(jax.random.key(3), CLASSIFIER.task.init(jax.random.key(4)), Census(people.clients, people.train.size, 3, example))
    server = server._replace(pseudo=jax.random.normal(jax.random.key(5), server.pseudo.shape))
    return method, server, bench.client(people, 1)


@pytest.mark.full
def test_each_player_moves_its_own():
    def message(server):
        return {"model": server.params, "projector": server.projector, "pseudo": server.pseudo}

    moved = {}
    for gamma in (0.0, 1.0):
        method, server, data = pieces(gamma=gamma, mu=0.0, lam=0.0)
        moved[gamma] = method.phases[2].local(jax.random.key(0), message(server), (), data).upload
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(moved[0.0]["projector"]))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(moved[1.0]["projector"]))
    jax.tree.map(np.testing.assert_array_equal, moved[0.0]["model"], moved[1.0]["model"])


@pytest.mark.full
def test_the_projector_lowers_what_the_model_raises():
    """D descends on mean log r, and so makes the contrastive loss -mean log r grow."""
    _, server, data = pieces(gamma=1.0, mu=0.0, lam=0.0)
    plan = data.train.take(jnp.arange(4), jnp.ones(4, bool))

    def log_ratio(D):
        z_u, z_x = (CLASSIFIER.task.features(server.params, {**plan, "x": x}) for x in (server.pseudo, plan["x"]))
        e1, e2, e3 = (fedbr.project(D, z) for z in (z_u, z_u, z_x))
        np.testing.assert_allclose(cosine(e1, e2), 1, rtol=1e-5)
        return float(-jax.nn.softplus(2 * cosine(e1, e3) - 2 * cosine(e1, e2)).mean())

    down = jax.grad(lambda D: -jax.nn.softplus(2 * cosine(fedbr.project(D, z_u), fedbr.project(D, z_x)) - 2.0).mean())
    z_u, z_x = (CLASSIFIER.task.features(server.params, {**plan, "x": x}) for x in (server.pseudo, plan["x"]))
    D = jax.tree.map(lambda d, g: d - 0.05 * g, server.projector, down(server.projector))
    assert log_ratio(D) < log_ratio(server.projector)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["mean", "mixture"])
def test_it_learns(mode):
    before, after = (end("fedbr", rounds=r, mode=mode, lr=0.3)[1].evaluation["test_loss"] for r in (1, 8))
    assert after < before


def test_what_it_needs():
    with pytest.raises(ValueError, match="'fedbr' needs a model with features and a head"):
        bench.make("fedbr")
