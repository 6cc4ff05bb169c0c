from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

from fedjax_lab import registry
from fedjax_lab.methods.modalities.fedpub import proxy
from fedjax_lab.types import Census, Stream

PROBLEM = classifier()
ALL = bench.always(*range(7))
OPTIONS = {"lr": 0.02, "local_steps": 3}


def run(people=PROBLEM.population, rounds=2, **options):
    method = registry.make("fedpub", PROBLEM.task, **{**OPTIONS, **options})
    return bench.run(method, people, cohort=ALL, rounds=rounds, task=PROBLEM.task)[0]


def relabeled(order):
    """The same clients under other names."""
    people = PROBLEM.population
    train = Stream(people.train.examples, people.train.offset[order], people.train.size[order])
    return people._replace(train=train, test=train, counts=people.counts[order])


@pytest.mark.full
def test_rows_of_the_similarity_sum_to_one_and_follow_the_clients_names():
    S = np.asarray(run(sharpness=30.0).server.similarity)
    np.testing.assert_allclose(S.sum(1), 1, rtol=1e-5)
    assert (S.argmax(1) == np.arange(7)).all() and S.max() > 1 / 7 + 0.01
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    np.testing.assert_allclose(run(relabeled(order), sharpness=30.0).server.similarity, S[order][:, order], atol=1e-5)


@pytest.mark.full
def test_without_sharpness_masks_and_distance_everybody_has_fedavgs_model():
    options = {"client_optimizer": "sgd", "lr": 0.1}
    state = run(rounds=3, sharpness=0.0, masked=False, l1=0.0, l2=0.0, **options)
    plain = registry.make("fedavg", PROBLEM.task, batch_size="full", local_steps=3, weighting="uniform", lr=0.1)
    x = bench.run(plain, PROBLEM.population, cohort=ALL, rounds=3, task=PROBLEM.task)[0].server
    for name, value in x.items():
        np.testing.assert_allclose(state.server.own[name], np.broadcast_to(value, (7, *value.shape)), atol=1e-6)
    assert all((m == 1).all() for m in jax.tree.leaves(state.clients.masks))


@pytest.mark.full
def test_masks_are_the_clients_own_and_regularizers_pull():
    thick, thin = (run(rounds=3, l1=l1, lr=0.05) for l1 in (0.0, 1.0))
    masks = [np.asarray(state.clients.masks["w1"]) for state in (thick, thin)]
    assert np.abs(masks[1]).mean() < np.abs(masks[0]).mean() - 0.05 and len(np.unique(masks[0].round(5), axis=0)) == 7
    near, far = (run(rounds=4, l2=l2, sharpness=0.0, client_optimizer="sgd", lr=0.05, masked=False) for l2 in (2.0, 0.0))
    start = PROBLEM.task.init(jax.random.key(0))["w1"]
    assert np.linalg.norm(near.server.params["w1"] - start) < np.linalg.norm(far.server.params["w1"] - start)
    detached, without = (run(rounds=3, **more).server.params["w1"] for more in ({"legacy": True, "l1": 0.0}, {"l1": 0.0, "l2": 0.0}))
    np.testing.assert_array_equal(detached, without)


def test_the_proxy_graph_is_five_random_blocks():
    shapes = {"x": (40, 7), "edges": (30, 2), "y": (40,)}
    census = Census(3, np.ones(3), 4, {k: jax.ShapeDtypeStruct(v, jnp.float32 if k == "x" else jnp.int32) for k, v in shapes.items()})
    batch = {k: np.asarray(v) for k, v in proxy(jax.random.key(1), census).items()}
    assert batch["x"].shape == (1, 500, 7) and abs(batch["x"].std() - 1) < 0.05
    edges = batch["edges"][0]
    assert (edges[:, 0] // 100 == edges[:, 1] // 100).all() and (edges[:, 0] != edges[:, 1]).all()
    assert {tuple(e) for e in edges} == {(b, a) for a, b in edges} and len(edges) == len({tuple(e) for e in edges})
    assert abs(len(edges) / (5 * 100 * 99) - 0.1) < 0.01
    other = np.asarray(proxy(jax.random.key(2), census)["x"])
    assert np.abs(other - batch["x"]).max() > 1


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'fedpub' needs a model with features and a head; task 'quadratic' has none"):
        bench.make("fedpub")
    with pytest.raises(ValueError, match="'fedpub' needs examples with inputs 'x'; task 'split' has a, o"):
        bench.start(registry.make("fedpub", bench.split()), task=bench.split())
