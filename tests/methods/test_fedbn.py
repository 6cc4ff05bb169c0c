from __future__ import annotations

import bench
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.methods.personalization.fedbn import normalizing
from fedjax_lab.models import regression


class Net(nn.Module):
    """From the rows' o to their a, normalized in between."""

    inputs = ("o",)

    norm: bool = True

    @nn.compact
    def __call__(self, o, *, train=False, mask=None):
        h = nn.Dense(4)(o)
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9)(h, mask=None if mask is None else mask[:, None]) if self.norm else h
        return nn.Dense(3)(nn.tanh(h))


def task(norm: bool):
    example = {"a": jnp.zeros((1, 3)), "y": jnp.zeros((1, 3)), "o": jnp.zeros((1, 3)), "mask": jnp.ones(1, bool)}
    found = regression("normed", Net(norm), example)
    renamed = lambda batch: {**batch, "y": batch["a"]}
    return found._replace(loss=lambda p, b, k: found.loss(p, renamed(b), k), metrics=lambda out, b: found.metrics(out, renamed(b)))


def test_which_leaves_normalize():
    params = jax.eval_shape(task(True).init, jax.random.key(0))
    marks = {jax.tree_util.keystr(path, simple=True, separator="/"): mark for path, mark in jax.tree_util.tree_leaves_with_path(normalizing(params))}
    assert {path for path, mark in marks.items() if mark} == {
        "params/BatchNorm_0/scale", "params/BatchNorm_0/bias", "stats/BatchNorm_0/mean", "stats/BatchNorm_0/var"}


@pytest.mark.full
def test_without_batch_normalization_it_is_fedavg():
    plain = task(False)
    (fedbn, one), (fedavg, two) = (bench.run(bench.make(name, plain, weighting="uniform"), task=plain) for name in ("fedbn", "fedavg"))
    jax.tree.map(np.testing.assert_array_equal, fedbn.server, fedavg.server)
    np.testing.assert_array_equal(one.rounds["bytes_up"], two.rounds["bytes_up"])


@pytest.fixture(scope="module")
def ended():
    normed = task(True)
    method = bench.make("fedbn", normed)
    return method, bench.run(method, task=normed, rounds=1), bench.start(method, task=normed)


@pytest.mark.full
def test_normalization_differs_and_the_rest_is_one(ended):
    method, (state, record), start = ended
    for path, leaf in state.clients.private.items():
        assert np.unique(np.asarray(leaf), axis=0).shape[0] == 4, path  # of three clients who trained, and the first of the others
    jax.tree.map(np.testing.assert_array_equal, state.server["stats"], start.server["stats"])
    kernels = 4 * (3 * 4 + 4 + 4 * 3 + 3)
    np.testing.assert_array_equal(record.rounds["bytes_up"][0], kernels)
    models = [method.personal(None, state.server, jax.tree.map(lambda x, i=i: x[i], state.clients), None) for i in (0, 2)]
    jax.tree.map(np.testing.assert_array_equal, models[0]["params"]["Dense_0"], models[1]["params"]["Dense_0"])
    assert not np.array_equal(models[0]["stats"]["BatchNorm_0"]["mean"], models[1]["stats"]["BatchNorm_0"]["mean"])
