"""FLoRA: stacks add up products exactly, whatever the ranks."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

from fedjax_lab import keys, registry
from fedjax_lab.local import batches, descend, gradient
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.transforms import lowrank
from fedjax_lab.parts.transforms.base import beside
from fedjax_lab.types import Cohort

PROBLEM = classifier()
SIDES = 5 + 4 + 4 + 3


def make(**options):
    return registry.make("flora", PROBLEM.task, **{"lr": 0.3, "local_steps": 4, "batch_size": "full", "client_optimizer": "sgd", "ranks": (3, 1, 2), **options})


def cohort(ids, clients=7):
    n = len(ids)
    return Cohort(jnp.asarray(ids), jnp.ones(n, bool), jnp.ones(n, jnp.int32), jnp.ones(n, jnp.int32), clients, jnp.int32(0))


@pytest.mark.parametrize("ranks", [(2,), (3, 1, 2)])
def test_the_stack_is_the_mean_of_products(ranks):
    """For any ranks and weights; the base has moved by s times it, and so have the logits."""
    method, rng = make(ranks=ranks, scale=1.5), np.random.default_rng(0)
    server = method.init_server(None, PROBLEM.task.init(jax.random.key(0)), bench.sync.Census(7, np.ones(7)))
    weights, ids = np.array([3.0, 1.0, 0.5, 0.0], np.float32), np.array([0, 1, 2, 5])
    held = np.arange(max(ranks))[None, :, None] < np.array([ranks[i % len(ranks)] for i in ids])[:, None, None]
    a = {"w1": rng.normal(size=(4, max(ranks), 5)) * held, "w2": rng.normal(size=(4, max(ranks), 4)) * held}
    b = {k: rng.normal(size=(4, n, max(ranks))) for k, n in (("w1", 4), ("w2", 3))}
    a["w1"][3] = np.nan  # the last was not heard
    stack = together().combine(jax.tree.map(jnp.float32, {"a": a, "b": b, "whole": {}}), jnp.asarray(weights), None)
    there = cohort(ids)._replace(mask=jnp.asarray(weights > 0))
    after = method.serve(None, server, {"model": stack}, there)
    p = weights[:3] / weights.sum()
    for k in a:
        mean = sum(p[i] * b[k][i] @ a[k][i] for i in range(3)).T
        change = np.asarray(after.params[k]) - np.asarray(server.params[k])
        assert np.linalg.norm(change - 1.5 * mean) / np.linalg.norm(mean) < 1e-5
    assert int(after.stacked) == sum(ranks[i % len(ranks)] for i in ids[:3]) and after.seen.tolist() == [0] * 7
    batch = {"x": jnp.asarray(PROBLEM.population.train.examples["x"])}
    merged = {k: server.params[k] + 1.5 * sum(p[i] * b[k][i] @ a[k][i] for i in range(3)).T if k in a else v for k, v in server.params.items()}
    np.testing.assert_allclose(PROBLEM.task.apply(after.params, batch), PROBLEM.task.apply(merged, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_one_client_is_lora_merged_after_every_round():
    method = make(ranks=(2,), scale=2.0)
    state, _ = bench.run(method, PROBLEM.population, task=PROBLEM.task, cohort=bench.always(3), rounds=2)
    base, work = bench.start(method, PROBLEM.population, PROBLEM.task).server.params, registry.training(lr=0.3, local_steps=4, batch_size="full")
    at, data = lowrank.sites(PROBLEM.task, (), ()), bench.client(PROBLEM.population, 3)
    for t in range(2):
        key = keys.purpose(keys.for_client(keys.for_round(jax.random.key(0), jnp.int32(t)), jnp.int32(3)), "phase0")
        a, b = lowrank.fresh(keys.purpose(keys.purpose(key, "local"), "fresh"), at, 2, "kaiming")
        task = beside(lowrank.over(PROBLEM.task, 2.0), {"base": base})
        first = {"a": a, "b": b, "whole": {}}
        y = jax.jit(lambda key, y, task=task: descend(batches(key, data, work), y, gradient(task), work.optimizer).params)(key, first)
        base = lowrank.merged(base, y["a"], y["b"], 2.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), state.server.params, base)


@pytest.mark.full
def test_a_smaller_rank_stays_one():
    """Rows beyond a client's own rank are zero, in momentum and decay too."""
    method = make(client_optimizer="adamw:weight_decay=0.1")
    server = bench.start(method, PROBLEM.population, PROBLEM.task).server
    for client, rank in ((0, 3), (4, 1)):
        data = bench.client(PROBLEM.population, client)
        y = jax.jit(lambda key, i=client, data=data: method.local(key, method.broadcast(server, i, 0), (), data).upload["model"])(jax.random.key(5))
        for k in ("w1", "w2"):
            assert not y["a"][k][rank:].any() and not y["b"][k][:, rank:].any() and y["b"][k][:, :rank].any(0).all()


@pytest.mark.full
def test_bytes_are_those_of_the_ranks():
    """Up r_i numbers a side; down what was stacked since the client was last heard, or the dense change; at first there is its rank alone."""
    _, record = bench.run(make(), PROBLEM.population, task=PROBLEM.task, cohort=bench.always(0, 1, 2), rounds=3)
    ids = np.asarray(record.rounds["ids"])
    np.testing.assert_array_equal(record.rounds["bytes_up"], 4 * SIDES * np.take([3, 1, 2], ids))
    dense = 5 * 4 + 4 * 3
    assert 6 * SIDES > dense
    np.testing.assert_array_equal(record.rounds["bytes_down"], 4 + np.array([[0], [4 * dense], [4 * dense]]) + np.zeros((3, 3)))
    method = make(ranks=(1,))
    server = bench.start(method, PROBLEM.population, PROBLEM.task).server
    behind = method.down["behind"].bits
    assert [float(behind(jnp.int32(n))) for n in (0, 1, 2, 3)] == [0, 32 * SIDES, 32 * dense, 32 * dense]
    away = server._replace(stacked=jnp.int32(5), seen=jnp.array([5, 4, 0, 0, 0, 0, 0], jnp.int32))
    assert [int(method.broadcast(away, i, 0)["behind"]) for i in range(3)] == [0, 1, 5]
    whole = make(ranks=(1,), where=("w1",), whole=("2",)).down["behind"].bits
    assert [float(whole(jnp.int32(n))) for n in (0, 1, 9)] == [0, 32 * (9 + 15), 32 * (20 + 15)]


def test_refusals():
    for flag in ("wire_down", "aggregator", "server"):
        assert flag in make().info.refuses
    with pytest.raises(ValueError, match="ranks.*is not valid; expected .*>= 1"):
        make(ranks=(4, 0))
