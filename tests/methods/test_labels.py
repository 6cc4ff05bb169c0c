"""FixMatch-FedAvg, FedSem and FedLabel, and the two streams of a client that they share."""
from __future__ import annotations

import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier, semi

from fedjax_lab import registry
from fedjax_lab.local import Work, batches
from fedjax_lab.methods.labels.fedlabel import CERTAINTY, selected
from fedjax_lab.parts import streams
from fedjax_lab.types import Census, Stream, View

PROBLEM = semi()
PEOPLE, TASK = PROBLEM.population, PROBLEM.task
LABELED = np.asarray(PEOPLE.train.examples["labeled"])
KNOWN = [int(LABELED[PROBLEM.rows(i)].sum()) for i in range(PROBLEM.clients)]
assert max(KNOWN) >= 4 and min(KNOWN) == 0 and KNOWN[3] == PROBLEM.size[3]


def make(name, **options):
    return registry.make(name, TASK, **{"lr": 0.2, "local_steps": 3, "batch_size": 4, "weighting": "uniform", **options})


def only_labels():
    """The same clients without what has no label."""
    owner = np.repeat(np.arange(PROBLEM.clients), PROBLEM.size)[LABELED]
    size = np.bincount(owner, minlength=PROBLEM.clients).astype(np.int32)
    train = Stream({k: v[LABELED] for k, v in PEOPLE.train.examples.items()}, (np.cumsum(size) - size).astype(np.int32), size)
    return PEOPLE._replace(train=train)


@functools.cache
def trained(name, labels=False, **options):
    """The model after three rounds of the clients that have labels, three of them at once."""
    people, ids = (only_labels() if labels else PEOPLE), (1, 3, 4)
    return jax.tree.map(np.asarray, bench.run(make(name, **options), people, task=TASK, cohort=bench.always(*ids), rounds=3)[0].server)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_streams_are_all_examples_once():
    for i in range(PROBLEM.clients):
        found = streams.streams(bench.client(PEOPLE, i))
        for view, mark in ((found.labeled, True), (found.unlabeled, False)):
            batch = jax.tree.map(np.asarray, view.whole())
            rows = PROBLEM.rows(i)[LABELED[PROBLEM.rows(i)] == mark]
            assert int(view.size) == len(rows) and batch["mask"].sum() == len(rows)
            np.testing.assert_array_equal(batch["x"][batch["mask"]], PEOPLE.train.examples["x"][rows])


def test_a_stream_without_an_example_gives_empty_batches_for_all_steps():
    data = bench.client(PEOPLE, 5)
    plan = streams.over(jax.random.key(0), data, Work(0.1, 2, 0, 2, None), streams.streams(data).labeled)
    assert plan.steps == 6 and not any(plan.at(jnp.int32(t))["mask"].any() for t in range(6))


def test_streams_of_an_indexed_view():
    data = bench.client(PEOPLE, 1)
    order = np.random.default_rng(0).permutation(len(LABELED)).astype(np.int32)
    shuffled = {k: jnp.asarray(v)[np.argsort(order)] for k, v in PEOPLE.train.examples.items()}
    other = data._replace(train=View(data.train.stream._replace(examples=shuffled, index=jnp.asarray(order)), data.train.client, data.train.capacity))
    for a, b in zip(streams.streams(data), streams.streams(other), strict=True):
        same(a.whole(), b.whole())


@pytest.mark.parametrize("name, options", [("fixmatch-fl", {"threshold": 1.01}), pytest.param("fedsem", {"warmup": 3}, marks=pytest.mark.full),
                                           pytest.param("fedlabel", {"threshold": 1.01, "lam": 0.0}, marks=pytest.mark.full)])
def test_without_labels_that_are_believed_it_is_fedavg_on_the_known_ones(name, options):
    reduced, plain = trained(name, **options), trained("fedavg", labels=True)
    same(reduced, plain)


@pytest.mark.full
def test_where_all_have_labels_self_training_is_fedavg():
    """Client 3 has."""
    one, other = (bench.run(make(name, **options), PEOPLE, task=TASK, cohort=bench.always(3), rounds=2)[0].server for name, options in (("fedsem", {"warmup": 1}), ("fedavg", {})))
    same(one, other)


def client(name, i, people=PEOPLE, **options):
    """What a client does from the first model."""

    def work(key):
        result = make(name, **options).local(key, {"model": TASK.init(jax.random.key(0))}, (), bench.client(people, i))
        return result.upload["model"], result.metrics

    return jax.tree.map(np.asarray, jax.jit(work)(jax.random.key(1)))


@pytest.mark.full
def test_fedlabels_consistency_has_no_slope_where_both_models_are_one():
    """Client 5 has no labels, so its first unlabeled step is taken where w = g."""
    change, metrics = client("fedlabel", 5, threshold=1.01, local_steps=1)
    assert all(np.abs(v).max() < 1e-6 for v in jax.tree.leaves(change))
    assert metrics["right_local"] == metrics["right_global"] == metrics["right"] and metrics["kept"] == 0
    moved, metrics = client("fedlabel", 5, threshold=0.2, local_steps=1)
    assert any(np.abs(v).max() > 1e-3 for v in jax.tree.leaves(moved)) and metrics["kept"] == 1


@pytest.mark.parametrize("score", CERTAINTY)
def test_the_expert_does_not_depend_on_who_is_called_local(score):
    p, q = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (2, 50, 4)))
    np.testing.assert_array_equal(selected(p, q, score), selected(q, p, score))
    flat, sharp = jnp.full((1, 4), 0.25), jnp.array([[0.01, 0.9, 0.05, 0.04]])
    np.testing.assert_array_equal(selected(flat, sharp, score), sharp)


@pytest.mark.full
def test_true_labels_of_the_others_are_never_read():
    y = np.where(LABELED, PEOPLE.train.examples["y"], (PEOPLE.train.examples["y"] + 1) % 3)
    blind = PEOPLE._replace(train=PEOPLE.train._replace(examples={**PEOPLE.train.examples, "y": y}))
    for name, options in (("fixmatch-fl", {"threshold": 0.4}), ("fedlabel", {"threshold": 0.4}), ("fedsem", {"warmup": 0})):
        changes = [client(name, 1, people, **options)[0] for people in (PEOPLE, blind)]
        same(*changes)
        changed = [float(np.abs(v).max()) for v in jax.tree.leaves(changes[0])]
        assert max(changed) > 1e-3


@pytest.mark.full
def test_labels_at_the_server_only():
    nobody = PEOPLE._replace(train=PEOPLE.train._replace(examples={**PEOPLE.train.examples, "labeled": np.zeros_like(LABELED)}))
    still, taught = (bench.run(make("fixmatch-fl", threshold=1.01, server_epochs=n), nobody, task=TASK, cohort=2, rounds=1)[0].server for n in (0, 2))
    same(still, bench.start(make("fixmatch-fl"), PEOPLE, TASK).server)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(still), jax.tree.leaves(taught), strict=True))


@pytest.mark.parametrize("name", ["fixmatch-fl", "fedsem", "fedlabel"])
def test_what_they_need(name):
    def begin(task, people):
        example = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in people.train.examples.items()}
        census = Census(people.clients, people.train.size, people.counts.shape[1], example)
        registry.make(name, task).init_server(jax.random.key(0), None, census)

    with pytest.raises(ValueError, match=f"'{name}' needs examples of which some have no label; hide labels by --partition=dirichlet:0.3.semi:0.1"):
        begin(TASK, classifier().population)
    with pytest.raises(ValueError, match=f"'{name}' needs one class per example; task 'quadratic' has none"):
        begin(bench.TASK, bench.population())


def test_the_plan_of_a_stream_is_that_of_its_own_number():
    data = bench.client(PEOPLE, 1)
    view = streams.streams(data).labeled
    seen = batches(jax.random.key(2), data, Work(0.1, 1, 0, 3, None), view)
    rows = [np.asarray(b["x"])[np.asarray(b["mask"])] for b in (seen.at(jnp.int32(t)) for t in range(int(seen.steps)))]
    own = PEOPLE.train.examples["x"][PROBLEM.rows(1)[LABELED[PROBLEM.rows(1)]]]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows), 0), np.sort(own, 0))
