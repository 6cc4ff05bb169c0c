from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.oracles.directions import cosine


def end(name, **options):
    task = bench.split()
    rounds = options.pop("rounds", 4)
    state, _ = bench.run(bench.make(name, task, **options), rounds=rounds, task=task)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.server)]), state


@pytest.mark.full
def test_without_the_contrast_it_is_fedavg():
    np.testing.assert_allclose(end("moon", mu=0.0)[0], end("fedavg")[0], rtol=1e-6)


@pytest.mark.full
def test_the_first_time_the_contrast_has_no_gradient():
    np.testing.assert_allclose(end("moon", mu=5.0, rounds=1)[0], end("fedavg", rounds=1)[0], rtol=1e-5)
    assert np.abs(end("moon", mu=5.0)[0] - end("fedavg")[0]).max() > 1e-3


def test_only_those_who_took_part_have_a_previous_model():
    _, state = end("moon", rounds=1)
    assert state.clients.seen.tolist() == [True, False, True, False, True, False]


def test_the_contrast_is_log_two_where_both_are_the_same():
    method, task = bench.make("moon", bench.split(), mu=1.0, local_steps=1), bench.split()
    x, row = task.init(jax.random.key(1)), method.init_client(None, task.init(jax.random.key(2)), None)
    data = bench.client(bench.population(), 3)
    loss = task.loss(x, data.train.whole(), None)[0]
    first = method.local(jax.random.key(0), {"model": x}, row, data)
    np.testing.assert_allclose(first.metrics["loss"] - loss, np.log(2), rtol=1e-4)
    other = method.local(jax.random.key(0), {"model": x}, row._replace(seen=jnp.ones((), bool)), data)
    assert other.metrics["loss"] - loss < np.log(2)  # y = x: s(z, z_g) = 1 is above s(z, z_p)


def test_cosine_is_safe_at_zero():
    a, b = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[4.0, 3.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0.96, 0.0], rtol=1e-6)
    slope = np.asarray(jax.grad(lambda a: cosine(a, b).sum())(a))
    assert np.isfinite(slope).all() and slope[0].any() and not slope[1].any()


def test_a_model_without_features_is_refused():
    with pytest.raises(ValueError, match="'moon' needs a model with features; task 'quadratic' has none"):
        bench.make("moon")
