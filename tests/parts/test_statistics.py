"""Normalization statistics, averaged, local and frozen, against a loop in numpy."""
from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny
from engine.tiny import EMPTY, SLOTS, N
from flax import linen as nn
from methods import bench

import fedjax_lab
from fedjax_lab import config, models, registry, run
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.types import Task

LR, STEPS, ROUNDS = 0.1, 3, 3
IDS = np.stack([np.random.default_rng(t).permutation(N)[:SLOTS] for t in range(8)])
MASK = np.stack([np.random.default_rng(t).random(SLOTS) < 0.7 for t in range(8)])


class Standardized(nn.Module):
    """Batch normalization of the input, then logistic regression: statistics that no parameter moves."""

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=None if mask is None else mask[:, None]))


@functools.cache
def task() -> Task:
    train = tiny.population().train.examples
    return models.classification("standardized", Standardized(), {k: v[:1] for k, v in train.items()})


class Model(NamedTuple):
    """Parameters and statistics in numpy."""

    scale: np.ndarray
    bias: np.ndarray
    kernel: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def of(params) -> Model:
    """From the model's tree."""
    norm, dense, stats = params["params"]["BatchNorm_0"], params["params"]["Dense_0"], params["stats"]["BatchNorm_0"]
    return Model(*(np.asarray(a, np.float64) for a in (norm["scale"], norm["bias"], dense["kernel"], dense["bias"], stats["mean"], stats["var"])))


def trained(model: Model, x, y, frozen=False) -> Model:
    """STEPS steps of full-batch SGD, by hand."""
    for _ in range(STEPS):
        mean, var = (model.mean, model.var) if frozen else (x.mean(0), x.var(0))
        z = (x - mean) / np.sqrt(var + 1e-5)
        logits = (z * model.scale + model.bias) @ model.kernel + model.shift
        p = np.exp(logits - logits.max(1, keepdims=True))
        g = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
        back = g @ model.kernel.T
        steps = (back * z).sum(0), back.sum(0), (z * model.scale + model.bias).T @ g, g.sum(0)
        stats = (model.mean, model.var) if frozen else (0.9 * model.mean + 0.1 * mean, 0.9 * model.var + 0.1 * var)
        model = Model(*(w - LR * s for w, s in zip(model, steps)), *stats)
    return model


def oracle(rule: str, start: Model):
    """(the server's model, every client's statistics, the mean of the last cohort's) after ROUNDS rounds of FedAvg."""
    train = tiny.population().train
    own, shown = [start[4:]] * N, start[4:]
    for t in range(ROUNDS):
        ends, sizes = [], []
        for i in IDS[t][MASK[t]]:
            if train.size[i]:
                rows = tiny.rows_of(i)
                begin = start._replace(mean=own[i][0], var=own[i][1]) if rule == "local" else start
                end = trained(begin, train.examples["x"][rows].astype(np.float64), train.examples["y"][rows], rule == "frozen")
                own[i] = end[4:]
                ends.append(end)
                sizes.append(train.size[i])
        mean = [np.average(parts, axis=0, weights=sizes) for parts in zip(*ends)]
        shown = mean[4:]
        start = Model(*mean[:4], *(shown if rule == "averaged" else start[4:]))
    return start, own, shown


def made(rule: str, name="fedavg", **options):
    """The task and the method of a rule."""
    its_task = statistics.frozen(task()) if rule == "frozen" else task()
    method = registry.make(name, its_task, **{"lr": LR, "batch_size": "full", "epochs": STEPS, **options})
    return its_task, statistics.local(method) if rule == "local" else method


@functools.cache
def ran(rule: str, chunk=1):
    """(method, first state, last state, last record) of ROUNDS rounds with the scripted cohorts."""
    its_task, method = made(rule)
    sim = tiny.build(method, the_task=its_task, chunk=chunk)
    first = sim.init(sim.world, jax.random.key(0))
    first = first._replace(participation=(jnp.asarray(IDS, jnp.int32), jnp.asarray(MASK), jnp.full(IDS.shape, tiny.FREE, jnp.int32)))
    before = tiny.host(first)
    return method, before, *map(tiny.host, sim.segment(sim.world, first, jnp.int32(0), jnp.int32(ROUNDS)))


def close(found: Model, want: Model):
    for name, a, b in zip(Model._fields, found, want):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rule", ["averaged", "local", "frozen"])
def test_every_rule_is_the_loop_in_numpy(rule):
    method, first, last, record = ran(rule)
    start = of(method.deploy(first.server))
    assert (start.mean == 0).all() and (start.var == 1).all()
    want, own, shown = oracle(rule, start)
    want = want._replace(mean=shown[0], var=shown[1]) if rule == "local" else want
    close(of(method.deploy(last.server)), want)
    test = tiny.population().test
    np.testing.assert_allclose(record.evaluation["test_accuracy"], accuracy(want, np.arange(100)), atol=1e-6)
    if rule == "local":
        for i in range(N):
            for name, by_hand in zip(("mean", "var"), own[i]):
                np.testing.assert_allclose(last.clients.stats["BatchNorm_0"][name][i], by_hand, rtol=1e-4, atol=1e-5)
        shown = [test.index[test.offset[i]:test.offset[i] + test.size[i]] for i in range(N)]
        personal = [accuracy(want._replace(mean=own[i][0], var=own[i][1]), rows) for i, rows in enumerate(shown) if len(rows)]
        np.testing.assert_allclose(record.evaluation["personal_client_test_accuracy_mean"], np.mean(personal), atol=1e-6)


def accuracy(model: Model, rows) -> float:
    """On these rows of the central test set, as the model stands."""
    examples = tiny.population().test.examples
    z = (examples["x"][rows] - model.mean) / np.sqrt(model.var + 1e-5)
    return np.mean(((z * model.scale + model.bias) @ model.kernel + model.shift).argmax(1) == examples["y"][rows])


def test_local_statistics_are_never_sent_down_and_change_no_training():
    (_, first, last, record), (_, _, averaged, other) = ran("local"), ran("averaged")
    jax.tree.map(np.testing.assert_array_equal, last.server.server["stats"], first.server.server["stats"])
    jax.tree.map(np.testing.assert_array_equal, last.server.server["params"], averaged.server["params"])
    started, size = record.rounds["mask"][0], 4 * 2 * tiny.DIM
    np.testing.assert_array_equal(record.rounds["bytes_up"][0], other.rounds["bytes_up"][0])
    np.testing.assert_array_equal(record.rounds["bytes_down"][0] + np.where(started, size, 0).astype(np.uint32), other.rounds["bytes_down"][0])
    seen = np.isin(np.arange(N), IDS[:ROUNDS][MASK[:ROUNDS]]) & (np.arange(N) != EMPTY)
    assert ((last.clients.stats["BatchNorm_0"]["mean"] != 0).any(1) == seen).all() and not seen.all()
    wide = ran("local", chunk=4)[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), wide.clients.stats, last.clients.stats)


def test_frozen_statistics_keep_their_bits_even_under_weight_decay():
    _, first, last, _ = ran("frozen")
    jax.tree.map(np.testing.assert_array_equal, last.server["stats"], first.server["stats"])
    frozen, params = statistics.frozen(task()), task().init(jax.random.key(0))
    local = made("frozen", client_optimizer="sgd:weight_decay=0.1")[1].local
    result = jax.jit(lambda: local(jax.random.key(0), {"model": params}, (), bench.client(tiny.population(), 0)))()
    assert not any(x.any() for x in jax.tree.leaves(result.upload["model"]["stats"]))
    batch = {k: jnp.asarray(v[:5]) for k, v in tiny.population().train.examples.items()} | {"mask": jnp.ones(5, bool)}
    for name in ("loss", "apply"):
        jax.tree.map(np.testing.assert_array_equal, getattr(frozen, name)(params, batch, jax.random.key(1)), getattr(task(), name)(params, batch, None))
    assert (frozen.apply(params, batch, jax.random.key(1)) != task().apply(params, batch, jax.random.key(1))).any()


def test_a_method_that_tunes_personal_models_starts_from_the_clients_own_statistics():
    method = made("local", "fedavgft", finetune_epochs=STEPS)[1]
    params = task().init(jax.random.key(0))
    row = method.init_client(None, params, None)
    row = row._replace(stats=jax.tree.map(lambda x: x + 2, row.stats))
    server = method.init_server(None, params, None)
    tuned = jax.jit(lambda: method.personal(jax.random.key(0), server, row, bench.client(tiny.population(), 0)))()
    train, rows = tiny.population().train, tiny.rows_of(0)
    close(of(tuned), trained(of(params)._replace(mean=np.full(12, 2.0), var=np.full(12, 3.0)), train.examples["x"][rows], train.examples["y"][rows]))


def test_a_model_without_statistics_is_told_so():
    plain = tiny.task()
    assert statistics.present(task()) and not statistics.present(plain)
    with pytest.raises(ValueError, match="statistics 'local' needs a model with normalization statistics"):
        statistics.local(registry.make("fedavg", plain)).init_server(None, plain.init(jax.random.key(0)), None)
    people = tiny.population()
    with pytest.raises(ValueError, match="--stats=frozen: task 'tiny' has no normalization statistics; leave --stats out"):
        fedjax_lab.train(task=plain, population=people, stats="frozen")
    with pytest.raises(ValueError, match="--stats=frozen: the method given has a task already"):
        fedjax_lab.train(task=task(), population=people, method=registry.make("fedavg", task()), stats="frozen")


@pytest.mark.parametrize("rule", ["averaged", "local", "frozen"])
def test_the_rule_is_a_setting(rule):
    prepared = run.prepare(config.make({"stats": rule, "cohort": 5}), task=task(), population=tiny.population())
    state = jax.eval_shape(prepared.simulation.init, prepared.simulation.world, jax.random.key(0))
    assert isinstance(state.server, statistics.Shown) == isinstance(state.clients, statistics.Kept) == (rule == "local")
    params, batch = task().init(jax.random.key(0)), {k: jnp.asarray(v[:5]) for k, v in tiny.population().train.examples.items()}
    same = prepared.task.apply(params, batch, jax.random.key(1)) == task().apply(params, batch)
    assert same.all() == (rule == "frozen")
