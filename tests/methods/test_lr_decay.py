"""lr_decay: what clients and server do in a round is what they do at that round's rate, in whatever divides by it too."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import registry
from fedjax_lab.types import Census, Cohort

RATE, DECAY, CLOCK = 0.05, 0.6, 3
METHODS = {
    "fedavg": {"client_optimizer": "momentum:0.9"}, "fednova": {"client_optimizer": "momentum:0.9"}, "scaffold": {}, "fedcm": {},
    "feddc": {}, "slowmo": {}, "scaffold-m-vr": {"server_lr": 0.1}, "fedpage": {}, "fedavgm": {"client_optimizer": "adamw:weight_decay=0.1"},
}


def turn(method):
    """(result of client 2, server after it) in round CLOCK, from a server and a row that have seen some rounds, so to say."""
    people, key = bench.population(), jax.random.key(0)
    phase = method.exchanges[-1]
    params = {"x": jnp.linspace(0.5, 1.5, bench.DIM)}
    worn = lambda state, by: jax.tree.map(lambda x: x + by if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    server = worn(method.init_server(key, params, Census(6, np.asarray(people.train.size))), 0.3)
    row = worn(method.init_client(key, params, None), 0.2)
    data = bench.client(people, 2, allowance=3)._replace(clock=jnp.int32(CLOCK))
    cohort = Cohort(jnp.array([2]), jnp.ones(1, bool), jnp.array([3]), jnp.array([3]), 6, jnp.int32(CLOCK))

    def both():
        result = phase.local(key, phase.broadcast(server, jnp.int32(2), data.clock), row, data)
        return result, phase.serve(key, server, result.upload, cohort)

    return jax.tree.map(np.asarray, jax.jit(both)())


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_one_at_its_own_rate(name):
    decayed, then, first = (bench.make(name, **METHODS[name], **rate) for rate in (
        {"lr": RATE, "lr_decay": DECAY}, {"lr": RATE * DECAY**CLOCK}, {"lr": RATE}))
    actual, expected, other = map(turn, (decayed, then, first))
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.abs(actual[0].upload["model"]["x"] - other[0].upload["model"]["x"]).max() > 1e-3


def test_without_decay_the_method_is_as_it_was_made():
    assert all(bench.make(name).exchanges[-1].local.__qualname__.startswith(name) for name in ("scaffold", "fedcm", "feddc"))
    work = registry.training(lr=RATE)
    assert work.lr_decay == 1 and float(work._replace(lr_decay=DECAY).at(jnp.int32(0)).lr) == np.float32(RATE)


def test_decay_is_between_zero_and_one():
    for wrong in (0.0, 1.1):
        with pytest.raises(ValueError, match="lr_decay"):
            bench.make("fedavg", lr_decay=wrong)
