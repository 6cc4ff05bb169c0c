"""Clients with models of different architectures."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import CLASSES, FEATURES, classifier

from fedjax_lab import registry, starts, tasks
from fedjax_lab.models.several import several
from fedjax_lab.types import Aux, Task

PROBLEM = classifier()
PEOPLE, TANH = PROBLEM.population, PROBLEM.task
CLIENTS, LR = len(PEOPLE.train.size), 0.1
ALL = bench.always(*range(CLIENTS))


def linear() -> Task:
    """x [B, 5] -> logits [B, 3]."""

    def apply(params, batch, key=None):
        return batch["x"] @ params["w"] + params["b"]

    def loss(params, batch, key):
        nll, mask = TANH.metrics(apply(params, batch), batch)["loss"], batch["mask"]
        return jnp.sum(jnp.where(mask, nll, 0)) / jnp.maximum(mask.sum(), 1), Aux()

    return Task("linear", lambda key: {"w": 0.6 * jax.random.normal(key, (FEATURES, CLASSES)), "b": jnp.zeros(CLASSES)}, apply, loss, TANH.metrics)


TWO = several("two", (TANH, linear()))


def ended(name, task, rounds=2, chunk=1, **options):
    method = registry.make(name, task, **{"lr": LR, "epochs": 1, "batch_size": "full", **options})
    return bench.run(method, PEOPLE, cohort=ALL, rounds=rounds, chunk=chunk, task=task)[0]


NETS = [(lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]), (lambda p, x: x @ p["w"] + p["b"])]


def gradients():
    """Of each net, in double precision: of the cross entropy (p, x, y), and of that with soft labels of the public examples (p, q)."""
    public = PROBLEM.public[0]
    own = [jax.jit(jax.grad(lambda p, x, y, net=net: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(net(p, x)), y[:, None], 1)))) for net in NETS]
    fit = [jax.jit(jax.grad(lambda p, q, net=net: -jnp.mean(jnp.sum(q * jax.nn.log_softmax(net(p, public)), -1)))) for net in NETS]
    return own, fit


def stepped(params, slope, rate=LR):
    return jax.tree.map(lambda p, g: p - rate * g, params, slope)


@pytest.mark.full
@pytest.mark.parametrize("name", ["knfu", "fedmd", "local"])
def test_two_of_a_kind_are_one_also_side_by_side(name):
    plain, (first, second) = ended(name, TANH).clients, ended(name, several("twice", (TANH, TANH)), chunk=3).clients["models"]
    for client in range(CLIENTS):
        for one, *both in zip(*map(jax.tree.leaves, (plain, first, second)), strict=True):
            np.testing.assert_allclose(both[client % 2][client], one[client], rtol=1e-6, atol=1e-7)


@pytest.mark.full
def test_every_client_fuses_with_models_of_another_kind():
    """KnFu with equal weights: a step on one's own examples, a step of KL towards the mean of all softmaxes, by hand."""
    first = bench.start(registry.make("knfu", TWO, lr=LR), PEOPLE, task=TWO).clients["models"]
    models = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), first[i % 2]) for i in range(CLIENTS)]
    with jax.enable_x64(True):
        own, fit = gradients()
        for _ in range(2):
            models = [stepped(m, own[i % 2](m, *PROBLEM.examples(PROBLEM.rows(i)))) for i, m in enumerate(models)]
            mean = sum(jax.nn.softmax(NETS[i % 2](m, PROBLEM.public[0])) for i, m in enumerate(models)) / CLIENTS
            models = [stepped(m, fit[i % 2](m, mean)) for i, m in enumerate(models)]
    found = ended("knfu", TWO, beta=0.0).clients["models"]
    for i in range(CLIENTS):
        for start, a, b in zip(*map(jax.tree.leaves, (jax.tree.map(lambda x, i=i: x[i], first[i % 2]), jax.tree.map(lambda x, i=i: x[i], found[i % 2]), models[i])),
                               strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
            assert np.abs(a - start).max() > 1e-3
        for start, a in zip(*map(jax.tree.leaves, (first[1 - i % 2], found[1 - i % 2])), strict=True):
            np.testing.assert_array_equal(a[i], start[i])  # what is not in use stays


@pytest.mark.full
def test_a_server_has_a_student_of_each_kind_and_all_teach_it():
    """FedDF: the mean of its own kind's clients, then Adam with a cosine decay towards the mean of everybody's logits, by hand."""
    steps, rates = 3, [0.01 * 0.5 * (1 + np.cos(np.pi * t / 3)) for t in range(3)]
    first = bench.start(registry.make("feddf", TWO, lr=LR), PEOPLE, task=TWO).server["models"]
    students = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model) for model in first]
    with jax.enable_x64(True):
        own, fit = gradients()
        for _ in range(2):
            trained = [stepped(students[i % 2], own[i % 2](students[i % 2], *PROBLEM.examples(PROBLEM.rows(i)))) for i in range(CLIENTS)]
            taught = jax.nn.softmax(sum(NETS[i % 2](m, PROBLEM.public[0]) for i, m in enumerate(trained)) / CLIENTS)
            for kind in range(2):
                ids = range(kind, CLIENTS, 2)
                s = jax.tree.map(lambda *x, ids=ids: sum(PROBLEM.size[i] * v for i, v in zip(ids, x, strict=True)) / PROBLEM.size[ids].sum(), *(trained[i] for i in ids))
                m, v = [jax.tree.map(np.zeros_like, s)] * 2
                for t in range(steps):
                    g = fit[kind](s, taught)
                    m, v = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g), jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
                    s = jax.tree.map(lambda p, m, v, t=t: p - rates[t] * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8), s, m, v)
                students[kind] = s
    options = {"lr": LR, "epochs": 1, "batch_size": "full", "server_steps": steps, "server_lr": 0.01, "held_out": 0.0}
    state, record = bench.run(registry.make("feddf", TWO, **options), PEOPLE, cohort=ALL, rounds=2, task=TWO)
    for a, b in zip(*map(jax.tree.leaves, (state.server["models"], tuple(students))), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    sizes = [4 * sum(x.size for x in jax.tree.leaves(model)) for model in first]
    for way in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(record.rounds[way], [[sizes[i % 2] for i in range(CLIENTS)]] * 2)


def test_text_names_the_models_in_turn():
    example = {"x": np.zeros((1, 64), np.float32), "y": np.zeros(1, np.int32)}
    task = tasks.made("digits_mlp:widths=5+logreg+mlp:widths=3/2", example, 10, {})
    shapes = jax.eval_shape(task.init, jax.random.key(0))["models"]
    assert [sum(x.size for x in jax.tree.leaves(shape)) for shape in shapes] == [65 * 5 + 6 * 10, 65 * 10, 65 * 3 + 4 * 2 + 3 * 10]
    assert task.own({"models": (), "which": None}, 5)["which"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("text", "words"), [
    ("digits_mlp+nosuch", "unknown model 'nosuch'"), ("digits_mlp+mlp:3", "'mlp:3' is not MODEL"), ("digits_mlp+mlp:width=3", "'mlp:width=3' has no option 'width'"),
    ("digits_mlp+resnet8:norm=batch", "'resnet8:norm=batch' has normalization statistics")])
def test_models_that_do_not_go_together_are_named(text, words):
    example = {"x": np.zeros((1, 8, 8, 1), np.float32), "y": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match=words):
        tasks.made(text, example, 10, {})


@pytest.mark.parametrize(("text", "field", "words"), [
    ("quadratic_mlp", "a", "model 'mlp' needs examples with 'x', and these have a, o"), ("quadratic_quadratic+mlp", "a", "model 'mlp' needs examples with 'x'"),
    ("digits_quadratic", "x", "model 'quadratic' needs examples with 'a', and these have o, x")])
def test_a_model_for_other_examples_is_named(text, field, words):
    with pytest.raises(ValueError, match=words):
        tasks.made(text, {field: np.zeros((1, 3), np.float32), "o": np.zeros((1, 3), np.float32)}, 0, {})


def test_what_needs_one_model_says_so():
    with pytest.raises(ValueError, match="'fedavg' is for clients with one model, and task 'two' gives them several; choose one of feddf, fedmd, knfu, local"):
        registry.make("fedavg", TWO)
    with pytest.raises(ValueError, match="--init=public: task 'two' gives clients several models; leave it out"):
        starts.started("public", TWO, PEOPLE)
