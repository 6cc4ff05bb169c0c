"""Gradient inversion and membership inference against what is known exactly."""
from __future__ import annotations

import itertools
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_lab import models, registry, tree
from fedjax_lab.data import halved
from fedjax_lab.parts.audits import inversion, membership
from fedjax_lab.types import Population, Stream

CLASSES, LR = 10, 0.3


class Lenet(nn.Module):
    """The network of the DLG paper: strided convolutions and sigmoids."""

    strides: tuple[int, ...] = (2, 1)

    @nn.compact
    def __call__(self, x):
        wide = nn.initializers.uniform(1.0)
        draw = lambda key, shape, dtype=jnp.float32: wide(key, shape, dtype) - 0.5
        for stride in self.strides:
            x = nn.sigmoid(nn.Conv(12, (5, 5), (stride, stride), kernel_init=draw, bias_init=draw)(x))
        return nn.Dense(CLASSES, name="head", kernel_init=draw, bias_init=draw)(x.reshape(x.shape[0], -1))


def examples(n, side=8, seed=0):
    """Smooth pictures in [0, 1] and labels."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, np.pi, side)
    waves = np.stack([np.cos(k * at) for k in range(3)])
    x = np.einsum("nkl,ka,lb->nab", rng.normal(size=(n, 3, 3)), waves, waves)
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return jnp.asarray(((x - low) / (high - low))[..., None], jnp.float32), jnp.asarray(rng.integers(0, CLASSES, n), jnp.int32)


def made(module, x, steps=1):
    batch = {"x": x[:1], "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
    task = models.classification("made", module, batch)
    return inversion.Target(task, task.init(jax.random.key(1)), LR, steps, x.shape, CLASSES)


def upload(target, x, y):
    """The change of a client that takes steps of gradient descent on the task's own loss."""
    params, batch = target.params, {"x": x, "y": y, "mask": jnp.ones(len(x), bool)}
    for _ in range(target.steps):
        params = tree.axpy(-target.lr, jax.grad(lambda p: target.task.loss(p, batch, None)[0])(params), params)
    return tree.sub(params, target.params)


@pytest.mark.full
@pytest.mark.parametrize("steps", [1, 3])
def test_the_attacker_trains_as_the_client_does(steps):
    x, y = examples(3)
    target = made(models.MLP((7,), CLASSES), x, steps)
    share = jax.nn.one_hot(y, CLASSES)
    found, wanted = inversion.sent(target, x, share), inversion.observed(target, upload(target, x, y))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)
    assert float(inversion.cosine(found, wanted)) == pytest.approx(1, abs=1e-5) and float(inversion.squared(found, wanted)) < 1e-8
    other = inversion.sent(target, x[::-1], share)
    assert float(inversion.cosine(other, wanted)) < 0.99


@pytest.mark.parametrize("module", [models.MLP((16,), CLASSES), models.LogisticRegression(CLASSES), Lenet()])
def test_the_label_of_one_example_is_read_off_exactly(module):
    x, y = examples(40)
    target = made(module, x[:1])

    def found(x, y):
        return inversion.label(target, upload(target, x[None], y[None]))[0]

    assert jax.jit(jax.vmap(found))(x, y).tolist() == y.tolist()


def test_a_first_layer_with_a_bias_leaks_its_input_exactly():
    x, y = examples(5)
    for module in (models.MLP((16,), CLASSES), models.LogisticRegression(CLASSES)):
        for one, label in zip(x, y, strict=True):
            change = upload(made(module, x[:1]), one[None], label[None])
            layer = change.get("body_0", change["head"])
            row = jnp.argmax(jnp.abs(layer["bias"]))
            np.testing.assert_allclose(layer["kernel"][:, row] / layer["bias"][row], one.reshape(-1), atol=1e-4)


def psnr(x, guess):
    return -10 * np.log10(np.mean((np.asarray(x) - np.asarray(guess)) ** 2) + 1e-12)


def attacked(name, x, y, module=None, noise=0.0, **options):
    """What an attack finds of each of these examples by itself, its client's gradient with noise."""
    target = made(module or Lenet(), x[:1])._replace(lr=1.0)
    attack = registry.catalog("audit")[name](**options)

    def one(key, x, y):
        change = upload(target, x[None], y[None])
        leaves, structure = jax.tree.flatten(change)
        noisy = [u + noise * jax.random.normal(jax.random.fold_in(key, i), u.shape) for i, u in enumerate(leaves)]
        return attack.find(target, key, jax.tree.unflatten(structure, noisy), y[None])

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), len(x)), x, y)
    return np.array([psnr(a, b) for a, b in zip(x, found.x[:, 0], strict=True)]), found


@pytest.mark.full
def test_matching_gradients_rebuilds_the_example():
    x, y = examples(2)
    found, leak = attacked("idlg", x, y, models.MLP((128,), CLASSES), iterations=60, restarts=4)
    assert found.min() > 20 and leak.labels[:, 0].tolist() == y.tolist() and float(leak.distance.max()) < 1e-3


@pytest.mark.full
@pytest.mark.parametrize("name", ["idlg", "dlg"])
def test_matching_gradients_of_convolutions(name):
    x, y = examples(2)
    found, leak = attacked(name, x, y, iterations=60, restarts=2)
    assert found.min() > 20 and leak.labels[:, 0].tolist() == y.tolist() and float(leak.distance.max()) < 1e-3


@pytest.mark.full
def test_noise_on_the_gradient_defends():
    x, y = examples(2)
    clean, noisy = (attacked("geiping", x, y, noise=noise, iterations=300, restarts=1)[0] for noise in (0.0, 1e-2))
    assert clean.mean() > 20 and clean.mean() - noisy.mean() > 8


if any((pathlib.Path(os.environ.get("FEDJAX_LAB_DATA", "nowhere")) / folder / "mnist").exists() for folder in ("", "tfds")):

    @pytest.mark.full
    def test_mnist_leaks_through_a_sigmoid_lenet():
        from fedjax_lab import tasks

        source, _ = tasks.load("mnist_lenet5")
        x, y = jnp.asarray(source.train["x"][:2], jnp.float32) / 255, jnp.asarray(source.train["y"][:2], jnp.int32)
        clean, leak = attacked("idlg", x, y, Lenet((2, 2, 1)), iterations=700, restarts=1)
        noisy, _ = attacked("idlg", x, y, Lenet((2, 2, 1)), noise=1e-2, iterations=700, restarts=1)
        assert np.median(clean) > 20 and np.median(clean) - np.median(noisy) > 8 and leak.labels[:, 0].tolist() == y.tolist()


def test_what_cannot_be_inverted_is_refused():
    x, y = examples(2)
    target = made(models.MLP((4,), CLASSES), x)
    with pytest.raises(ValueError, match="^'idlg' reads off the label of one example; there are 2; choose dlg or geiping$"):
        registry.catalog("audit")["idlg"]().find(target, jax.random.key(0), target.params, y)
    with pytest.raises(ValueError, match="^task 'made': a label is read off a dense layer 'head' with 10 columns"):
        inversion.label(target, {"body": jnp.ones((3, 10))})
    with pytest.raises(ValueError, match="^option 'shadows' of 'lira': 3 is odd"):
        membership.lira(shadows=3)


def test_numbers_equal_their_definitions():
    rng = np.random.default_rng(0)
    score, member = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(score[member], score[~member])]
    found = membership.numbers(score, member)
    assert found["auc"] == pytest.approx(np.mean(pairs))
    gaps = [(score[member] >= t).mean() - (score[~member] >= t).mean() for t in range(7)]
    assert found["advantage"] == pytest.approx(max(gaps))
    best = membership.numbers(member.astype(float), member)
    assert best == {"auc": 1.0, "advantage": 1.0, "found_at_1_percent": 1.0, "found_at_10_percent": 1.0}
    p = np.array([1e-9, 0.3, 0.5, 1 - 1e-9])
    np.testing.assert_allclose(membership.confidence(-np.log(p)), np.log(p / (1 - p)), rtol=1e-6, atol=1e-12)


def test_likelihood_ratios_find_members_as_theory_says():
    """Confidences N(m_x + 1, 1) with and N(m_x - 1, 1) without the example: the best area is Phi(sqrt 2), whatever m_x; a threshold sees m_x only."""
    rng, n, k = np.random.default_rng(0), 4000, 64
    hard, member = 5 * rng.normal(size=n), rng.random(n) < 0.5
    inside = np.concatenate([half := rng.random((k // 2, n)) < 0.5, ~half])

    def losses(inside):
        return np.log1p(np.exp(-(hard + np.where(inside, 1, -1) + rng.normal(size=inside.shape))))

    target, shadow = losses(member), losses(inside)
    found = membership.numbers(membership.lira(shadows=k).score(target, shadow, inside), member)
    assert found["auc"] == pytest.approx(stats.norm.cdf(2**0.5), abs=0.02)
    assert 0.5 < membership.numbers(membership.loss_threshold().score(target, shadow, inside), member)["auc"] < 0.7
    nothing = membership.numbers(membership.lira(shadows=k).score(target, losses(rng.random((k, n)) < 0.5), inside), rng.random(n) < 0.5)
    assert nothing["auc"] == pytest.approx(0.5, abs=0.04)


def test_halves_of_every_client():
    size = np.array([4, 0, 3, 1], np.int32)
    index = np.array([9, 7, 5, 3, 1, 0, 2, 8], np.int32)
    train = Stream({"x": np.arange(10.0), "y": np.arange(10) % 2}, (np.cumsum(size) - size).astype(np.int32), size, index)
    people = Population(train, train, np.zeros((4, 2), np.float32))
    rows, owner = halved.owned(train)
    assert rows.tolist() == index.tolist() and owner.tolist() == [0] * 4 + [2] * 3 + [3]
    masks = halved.masks(np.random.default_rng(0), owner, 4)
    assert masks.shape == (5, 8) and (masks[1] == ~masks[2]).all() and (masks[3] == ~masks[4]).all()
    assert [np.bincount(owner[m], minlength=4).tolist() for m in masks[:2]] == [[2, 0, 2, 1]] * 2
    assert len({tuple(m) for m in halved.masks(np.random.default_rng(1), owner, 40)}) > 10
    half = halved.only(people, rows, owner, masks[0])
    for client in range(4):
        n = int(half.train.size[client])
        own = half.train.rows(client, np.arange(n)).tolist()
        assert own == rows[masks[0] & (owner == client)].tolist()
        assert half.counts[client].tolist() == [sum(r % 2 == c for r in own) for c in (0, 1)]
    assert len(half.train.index) == 8
