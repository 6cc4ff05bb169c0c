from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import run, tree
from fedjax_lab.config import Config
from fedjax_lab.methods.communication.fedkseed import direction, logits, moved

OPTIONS = {"seeds": 8, "eps": 0.1, "lr": 0.02, "local_steps": 5}


def made(**options):
    return bench.make("fedkseed", **{**OPTIONS, **options})


def worked(method, server, client=3):
    message = method.broadcast(server, 0, 0)
    return method.local(jax.random.key(5), message, (), bench.client(bench.population(), client))


@pytest.mark.full
def test_the_clients_model_is_the_received_one_less_its_scalars_along_the_directions():
    """Seen from outside: the loss that a second step meets is that at x - G z."""
    server = made().init_server(jax.random.key(1), {"x": jnp.ones(3)}, None)
    steps = [worked(made(local_steps=k), server) for k in (1, 2, 3)]
    rows = bench.client(bench.population(), 3).train.whole()
    for before, after, k in zip(steps, steps[1:], (1, 2), strict=False):
        y = moved(server.params, server.seed, before.upload["scalars"])
        step = after.upload["scalars"] - before.upload["scalars"]
        j = int(jnp.argmax(jnp.abs(step)))
        z = direction(server.seed, j, y)
        slope = jax.grad(lambda y: bench.TASK.loss(y, rows, None)[0])(y)
        np.testing.assert_allclose(step[j], 0.02 * tree.vdot(slope, z), rtol=2e-3)  # of a quadratic, differences are slopes
        assert np.count_nonzero(step) == 1


@pytest.mark.full
def test_the_servers_model_is_the_mean_of_the_clients():
    method, people = made(), bench.population()
    state, _ = bench.run(method, people, rounds=1, cohort=bench.always(0, 3))
    first = bench.start(method).server
    np.testing.assert_allclose(state.server.params["x"], moved(first.start, first.seed, state.server.a)["x"], rtol=1e-5)
    state, _ = bench.run(method, people, rounds=3, cohort=bench.always(0, 3))
    again = moved(state.server.start, state.server.seed, state.server.a)
    np.testing.assert_allclose(state.server.params["x"], again["x"], rtol=1e-5)
    assert np.abs(again["x"] - 1).max() > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("pro, times", [(False, 1), (True, 3)])
def test_a_message_is_a_number_for_each_seed_whatever_the_model(pro, times):
    sizes = {}
    for task in (bench.TASK, bench.split()):
        method = bench.make("fedkseed", task, **{**OPTIONS, "pro": pro})
        rounds = bench.run(method, rounds=1, task=task)[1].rounds
        sizes[tree.size(task.init(jax.random.key(0)))] = rounds["bytes_up"][0].tolist(), rounds["bytes_down"][0].tolist()
    assert sizes == {3: ([4 * 8 * times] * 3, [4 * (8 * times + 1)] * 3), 16: ([4 * 8 * times] * 3, [4 * (8 * times + 1)] * 3)}


@pytest.mark.full
def test_one_seed_is_a_search_along_a_line():
    state, _ = bench.run(made(seeds=1, local_steps=20), rounds=3, cohort=6)
    z = direction(state.server.seed, 0, state.server.start)["x"]
    d = np.asarray(state.server.params["x"] - 1)
    np.testing.assert_allclose(d, (d @ z) / (z @ z) * z, atol=1e-6)
    assert np.abs(d).max() > 1e-3


def test_importances_between_zero_and_one():
    np.testing.assert_allclose(logits(jnp.array([6.0, 1.0, 0.0]), jnp.array([3.0, 1.0, 0.0])), [1, 0.5, 0], rtol=1e-6)
    assert not logits(jnp.zeros(4), jnp.zeros(4)).any()


def test_other_wires_are_refused():
    with pytest.raises(ValueError, match="'fedkseed' refuses it: its messages are scalars"):
        run.method_of(Config(method="fedkseed", wire_up="topk"), bench.TASK)
