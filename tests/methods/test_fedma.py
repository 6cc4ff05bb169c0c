from __future__ import annotations

import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.fedma import match as by_hand
from problem import classifier

from fedjax_lab import models, registry
from fedjax_lab.parts import chains
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.solvers.matching import Prior, match

PEOPLE = classifier().population
EXAMPLE = {"x": np.zeros((1, 5), np.float32), "y": np.zeros(1, np.int32), "mask": np.ones(1, bool)}
TASK = models.classification("mlp", models.MLP((8, 6), 3), EXAMPLE)
LAYERS = chains.chain("fedma", TASK, "head")
rng = np.random.default_rng(0)


def prior(dim, gamma=7.0, sigma=1.0, sigma0=1.0):
    return Prior(gamma, sigma, sigma0, np.zeros(dim))


def net():
    """A network of 4 and 3 hidden units in the places of 8 and 6, with biases."""
    params = TASK.init(jax.random.key(5))
    noise = iter(jax.random.split(jax.random.key(6), 99))
    full = {path: x + 0.3 * jax.random.normal(next(noise), x.shape) for path, x in paths(params).items()}
    return chains.narrowed(full, LAYERS, [jnp.arange(4), jnp.arange(3)])


def outputs(flat):
    return TASK.apply(jax.tree.unflatten(jax.tree.structure(jax.eval_shape(TASK.init, jax.random.key(0))), list(flat.values())), PEOPLE.train.examples)


def deployed(cohort, shuffled, **options):
    """What is deployed after a round without training, where every client has the network with its units in an order of its own."""
    method = registry.make("fedma", TASK, **{"lr": 0.0, "retrain": False, "batch_size": "full", "client_optimizer": "sgd", **options})

    def init_client(key, params, facts):
        keys = jax.random.split(key)
        at = [jax.random.permutation(k, n) if shuffled else jnp.arange(n) for k, n in zip(keys, (4, 3))]
        return chains.narrowed(net(), LAYERS, at)

    state, _ = bench.run(method._replace(init_client=init_client), PEOPLE, cohort=cohort, rounds=1, task=TASK)
    return paths(jax.tree.map(np.asarray, state.server.params)), state.server.place


@pytest.mark.full
def test_clients_that_are_one_net_in_other_orders_give_it_back():
    found, place = deployed(bench.always(*range(7)), True, sigma0=1e6)
    np.testing.assert_allclose(outputs(found), outputs(net()), atol=1e-4)
    for layer, own in zip(LAYERS, (4, 3)):
        assert np.any(np.asarray(layer.units(found)), 1).tolist() == [True] * own + [False] * (layer.outputs - own)
    assert len({tuple(p) for p in np.asarray(place[0])}) > 1 and all(sorted(p) == [0, 1, 2, 3] for p in np.asarray(place[0]))


@pytest.mark.full
def test_averaging_by_place_does_not():
    found, _ = deployed(bench.always(*range(7)), True, match_by="place")
    assert np.abs(outputs(found) - outputs(net())).max() > 0.1


@pytest.mark.full
def test_one_client_is_its_own_net_and_a_narrow_prior_shrinks_it():
    found, _ = deployed(bench.always(3), False, sigma0=1e6, match_by="posterior")
    classes = PEOPLE.counts[3] > 0
    np.testing.assert_allclose(outputs(found)[:, classes], outputs(net())[:, classes], atol=1e-4)
    found, place = deployed(bench.always(3), False, prior_bias=0.0)
    first = LAYERS[0].kernel
    np.testing.assert_allclose(found[first][:, place[0][3]], net()[first][:, :4] / 2, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_planted_units_are_found_and_others_become_new_ones(seed):
    rng = np.random.default_rng(seed)
    atoms, order = 5 * rng.normal(size=(6, 8)), [rng.permutation(6)[:4] for _ in range(5)]
    units = np.stack([atoms[at] + 0.05 * rng.normal(size=(4, 8)) for at in order])
    found, place = match(units, 10, prior(8, sigma=0.01), 5)  # a wider prior lets every unit be new
    seen = np.unique(np.concatenate(order))
    assert len(found) == len(seen)
    for (i, p), (j, q) in itertools.combinations(zip(order, place), 2):
        np.testing.assert_array_equal(p[:, None] == q, i[:, None] == j)
    np.testing.assert_allclose(found[place], units, atol=0.3)
    capped, place = match(units, 4, prior(8), 1)
    assert len(capped) == 4 and all(len(set(p)) == 4 for p in place)


@pytest.mark.parametrize("gamma, sigma, sigma0, sweeps", [(7.0, 1.0, 1.0, 5), (1.0, 0.1, 2.0, 2), (40.0, 2.0, 0.5, 0)])
def test_it_is_the_assignment_by_hand(gamma, sigma, sigma0, sweeps):
    units = np.random.default_rng(4).normal(size=(4, 5, 3))
    mean = np.array([0, 0, 0.1])
    atoms, place = match(units, 12, Prior(gamma, sigma, sigma0, mean), sweeps)
    expected, where = by_hand(list(units), 12, gamma, sigma, sigma0, mean, sweeps)
    np.testing.assert_allclose(atoms[place], expected[np.array(where)], atol=1e-12)
    assert len(atoms) == len(expected)


@pytest.mark.full
def test_windows_and_images_are_followed_channel_by_channel():
    example = {"x": np.zeros((1, 8, 8, 1), np.float32), "y": np.zeros(1, np.int32), "mask": np.ones(1, bool)}
    task = models.classification("cnn", models.CNN(3, widths=(4, 6), hidden=8), example)
    layers = chains.chain("fedma", task, "head")
    assert [(layer.places, layer.inputs, layer.outputs) for layer in layers] == [(1, 25, 4), (25, 4, 6), (4, 6, 8), (1, 8, 3)]
    flat = paths(task.init(jax.random.key(1)))
    batch = {**example, "x": rng.normal(size=(1, 8, 8, 1)).astype(np.float32)}
    turned = chains.narrowed(flat, layers, [jnp.asarray(rng.permutation(n)) for n in (4, 6, 8)])
    tree = jax.tree.structure(task.init(jax.random.key(1)))
    one, other = (task.apply(jax.tree.unflatten(tree, list(m.values())), batch) for m in (flat, turned))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'fedma' needs a plain network of at least two layers; task 'quadratic' has 0 kernels and 'x'"):
        bench.make("fedma")
    with pytest.raises(ValueError, match="'fedma' needs to know in which order layers follow; task 'mlp' says nothing"):
        bench.start(registry.make("fedma", TASK._replace(taps=None)), PEOPLE, TASK)
    assert LAYERS[0].bias == "body_0/bias" and [layer.outputs for layer in LAYERS] == [8, 6, 3]
