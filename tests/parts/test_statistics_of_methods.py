"""What every method does with normalization statistics: the server's are the mean of the clients', or stay out of it where they are local."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import bench

from fedjax_lab import registry, rules, spec
from fedjax_lab.parts.moving import summed
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.types import Aux, Census, Cohort, Streaming, Task

AGREED = 5.0
CLOSED = {"rerce-fed", "rerce-fed-clu"}  # least squares in closed form: models without statistics


def agreeing() -> Task:
    """A quadratic whose statistics are AGREED after every batch, whoever has it."""
    base = bench.TASK

    def loss(params, batch, key):
        return base.loss(params["params"], batch, key)[0], Aux({"mean": jnp.full(2, AGREED)})

    def init(key):
        return {"params": base.init(key), "stats": {"mean": jnp.zeros(2)}}

    def features(params, batch, key=None):
        return batch["o"] - params["params"]["x"]

    return base._replace(init=init, loss=loss, apply=lambda params, batch, key=None: base.apply(params["params"], batch, key), features=features)


def by_hand(method):
    """The server's state after two rounds of two clients: the engine in fifteen lines of Python."""
    people, key, clients = bench.population((4, 2)), jax.random.key(0), (0, 1)
    params = agreeing().init(key)
    server = method.init_server(key, params, Census(people.clients, people.train.size))
    rows = {i: method.init_client(key, params, None) for i in clients}
    size = jnp.asarray(people.train.size)
    cohort = Cohort(jnp.asarray(clients), jnp.ones(len(clients), bool), size, method.steps(size), people.clients, jnp.int32(0))
    for clock in range(2):
        data = {i: bench.client(people, i) for i in clients}
        for phase in method.exchanges:
            if phase.when is not None and not phase.when(key, jnp.int32(clock)):
                continue
            results = {i: phase.local(key, phase.broadcast(server, jnp.int32(i), jnp.int32(clock)), rows[i], data[i]) for i in clients}
            rows = {i: result.client for i, result in results.items()}
            data = {i: data[i]._replace(keep=result.keep) for i, result in results.items()}
            server = phase.serve(key, server, {f: combined(phase, f, list(results.values())) for f in results[clients[0]].upload}, cohort)
    return server


def combined(phase, field, results):
    rule = phase.aggregate.get(field, rules.mean())
    assert isinstance(rule, Streaming)
    pairs = [(r.upload[field], jnp.float32(r.weight[field] if isinstance(r.weight, dict) else r.weight)) for r in results]
    return rule.finish(functools.reduce(lambda acc, pair: rule.add(acc, *pair), pairs, rule.zero(*pairs[0])))


def fits(name: str) -> bool:
    """Whether the method optimizes and takes a model that is no classifier."""
    if registry.catalog()[name].info.family != "optimization" or name in CLOSED:
        return False
    try:
        registry.make(name, agreeing())
    except ValueError:
        return False
    return True


@pytest.mark.full
@pytest.mark.parametrize("name", list(filter(fits, registry.catalog("method"))))
def test_statistics_that_all_clients_agree_on_are_the_servers(name):
    """Whatever the rates, momenta, weights and control variates of the method."""
    options = {o.name for o in spec.options(registry.catalog()[name])}
    more = {k: v for k, v in {"server_lr": 0.5, "local_steps": 1, "batch_size": "full"}.items() if k in options}
    method = registry.make(name, agreeing(), **more)
    with jax.disable_jit():
        model = method.deploy(by_hand(method))
    np.testing.assert_allclose(model["stats"]["mean"], AGREED, rtol=1e-6)
    assert np.isfinite(model["params"]["x"]).all() and (model["params"]["x"] != 1).all()


@pytest.mark.parametrize("name", ["fedavgm", "scaffold", "fedavg-m-vr", "savic", "moon", "fedau", "mime"])
def test_local_statistics_with_server_memory_rows_and_phases(name):
    """Whatever else the method sends and keeps: the model is that of averaged statistics, and the server has nothing of them."""
    method = registry.make(name, agreeing(), local_steps=1, batch_size="full")
    local = statistics.local(method)
    with jax.disable_jit():
        want, state = method.deploy(by_hand(method)), by_hand(local)
    np.testing.assert_array_equal(local.deploy(state)["params"]["x"], want["params"]["x"])
    np.testing.assert_allclose(local.deploy(state)["stats"]["mean"], AGREED, rtol=1e-6)
    assert not np.any(method.deploy(state.server)["stats"]["mean"]) and local.info.stateful


def test_statistics_of_a_sum_are_averaged():
    """So that dividing by the weights of the whole population does not shrink them."""
    rule, changes = summed(), [{"params": jnp.float32(i), "stats": jnp.float32(10 * i)} for i in (1, 2)]
    acc = rule.zero(changes[0], jnp.float32(1))
    assert rule.finish(acc) == {"params": 0, "stats": 0}
    for change, weight in zip(changes, (3, 1)):
        acc = rule.add(acc, change, jnp.float32(weight))
    assert rule.finish(acc) == {"params": 5, "stats": 12.5} and rule.finish(rule.merge(acc, acc)) == {"params": 10, "stats": 12.5}
