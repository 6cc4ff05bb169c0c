from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import ALIGNED, HIDDEN, Normed, classifier, parties

from fedjax_lab import models, registry

PROBLEM = parties()
PEOPLE = PROBLEM.population
ALL = bench.always(*range(7))
LR, ROUNDS = 0.3, 4


@functools.cache
def run(cohort=ALL, **options):
    method = registry.make("splitnn", PROBLEM.task, **{"lr": LR, "top": (6,), "batch_size": "full", **options})
    return bench.run(method, PEOPLE, cohort=cohort, rounds=ROUNDS, task=PROBLEM.task)


def model(state):
    return {"parties": state.server.parties.params, "top": state.server.top.params}


def first():
    return model(bench.start(registry.make("splitnn", PROBLEM.task, top=(6,)), PEOPLE, task=PROBLEM.task))


def unsplit(params, x, y):
    """The loss of one network in one piece: x [P, B, 5]."""
    ours, layers = params["parties"], params["top"]
    h = jnp.concatenate([jnp.tanh(x[k] @ ours["w1"][k] + ours["b1"][k]) for k in range(len(x))], 1)
    z = jax.nn.relu(h @ layers[0]["kernel"] + layers[0]["bias"]) @ layers[1]["kernel"] + layers[1]["bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1))


@pytest.mark.full
def test_it_is_the_training_of_the_network_in_one_piece():
    x = np.stack([PEOPLE.train.examples["x"][o: o + ALIGNED] for o in PEOPLE.train.offset])
    params, slope = first(), jax.jit(jax.grad(unsplit))
    for _ in range(ROUNDS):
        params = jax.tree.map(lambda p, g: p - LR * g, params, slope(params, x, PEOPLE.public["y"]))
    found = model(run()[0])
    assert np.abs(found["parties"]["w1"] - first()["parties"]["w1"]).max() > 0.01
    for a, b in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.full
def test_a_party_that_is_absent_stays_and_so_do_the_weights_on_its_zeros():
    before, after = first(), model(run(bench.always(0, 1, 3, 4, 5, 6))[0])
    for name in ("w1", "b1"):
        np.testing.assert_array_equal(after["parties"][name][2], before["parties"][name][2])
        assert all(np.abs(after["parties"][name][k] - before["parties"][name][k]).max() > 1e-4 for k in (0, 1, 3, 4, 5, 6))
    kernels = [np.asarray(m["top"][0]["kernel"]).reshape(7, HIDDEN, -1) for m in (before, after)]
    np.testing.assert_array_equal(kernels[0][2], kernels[1][2])
    assert all(np.abs(kernels[0][k] - kernels[1][k]).max() > 1e-4 for k in (0, 1, 3, 4, 5, 6))


@pytest.mark.full
def test_what_is_cut_is_counted_both_ways_and_nothing_else():
    _, record = run(batch_size=4)
    rows = np.array([4, 2, 4, 2])  # six examples in batches of four
    for way in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(record.rounds[way], np.repeat(4 * HIDDEN * rows[:, None], 7, 1))


@pytest.mark.full
def test_only_the_server_reads_labels():
    told = PEOPLE._replace(train=PEOPLE.train._replace(examples={**PEOPLE.train.examples, "y": 0 * PEOPLE.train.examples["y"]}))
    method = registry.make("splitnn", PROBLEM.task, lr=LR, top=(6,), batch_size="full")
    other = bench.run(method, told, cohort=ALL, rounds=ROUNDS, task=PROBLEM.task)[0]
    for a, b in zip(*map(jax.tree.leaves, (model(other), model(run()[0]))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'splitnn' needs a model with features and a head; task 'quadratic' has none"):
        bench.make("splitnn")
    example = {"x": np.zeros((1, 5), np.float32), "y": np.zeros(1, np.int32), "mask": np.ones(1, bool)}

    class Split(Normed):
        def features(self, x):
            return x

    with pytest.raises(ValueError, match="'splitnn' needs a model without normalization statistics; task 'normed' has some"):
        bench.make("splitnn", models.classification("normed", Split(), example))
    whole = classifier()
    with pytest.raises(ValueError, match="'splitnn' needs parties with different features of the same examples; task 'tiny' has none"):
        bench.start(bench.make("splitnn", whole.task), whole.population, task=whole.task)
