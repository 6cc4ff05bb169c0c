"""The compiled program: traced once, its tables in place, no data inside, nothing fetched on the way; and the errors of a build."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny

from fedjax_lab import run, tree
from fedjax_lab.engine import clients, mesh, sync
from fedjax_lab.parts.cohorts.bernoulli import bernoulli
from fedjax_lab.types import Method, Result


def abstract(values):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values)


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_one_trace_serves_every_segment(devices, chunk):
    sim, traces = tiny.base(devices, chunk)
    tiny.run(sim, (2,))
    before, programs = len(traces), len(tiny.COMPILED)
    tiny.run(sim, (1, 4, 0, 3), seed=5)
    assert 0 < before == len(traces) and 0 < programs == len(tiny.COMPILED)


def test_no_rounds_evaluate_and_change_nothing():
    sim, _ = tiny.base()
    before = tiny.host(tiny.start(sim))
    after, record = tiny.run(sim, (0,))
    tiny.same(before, after)
    assert record.evaluation["test_loss"] > 0 and not record.rounds["mask"].any()


def test_rows_beyond_the_rounds_asked_for_are_zero():
    _, record = tiny.run(tiny.base()[0], (2,))
    for name, value in record.rounds.items():
        assert value.shape[0] == 4 and not value[2:].any(), name
        assert name in ("finite", "mask", "bytes_up", "bytes_down", "ids", "steps0") or value[:2].all(), name


def stamping(width):
    """No training: a client marks its row, the server stays. The table is all there is to move."""

    def local(key, message, client, data):
        return Result({}, 1.0, client + data.id)

    return Method(
        local, init_client=lambda key, params, facts: jnp.zeros(width), serve=lambda key, server, aggregate, cohort: server
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_the_client_table_is_updated_in_place(devices):
    sim = tiny.build(stamping(50_000), devices=devices, slots=2)
    state = tiny.start(sim)
    compiled = sim.segment.lower(sim.world, state, jnp.int32(0), jnp.int32(2)).compile()
    memory, table = compiled.memory_analysis(), tree.nbytes(state.clients) // devices
    assert memory.alias_size_in_bytes >= table  # donated
    assert memory.temp_size_in_bytes < table  # and not copied on the way; a cohort's rows are a tenth of it, or a fifth
    assert state.clients.sharding.shard_shape(state.clients.shape)[0] == tiny.N // devices
    after, record = sim.segment(sim.world, state, jnp.int32(0), jnp.int32(2))
    assert state.clients.is_deleted() and after.clients.sharding == sim.init(sim.world, jax.random.key(0)).clients.sharding
    expected = np.zeros(tiny.N)
    np.add.at(expected, np.asarray(record.rounds["ids"][:2]).ravel(), np.asarray(record.rounds["ids"][:2]).ravel())
    np.testing.assert_array_equal(after.clients[:, 0], expected)


def test_the_world_is_an_argument():
    sim, _ = tiny.base()
    state = jax.eval_shape(sim.init, sim.world, jax.random.key(0))
    text = sim.segment.lower(*abstract((sim.world, tiny.start(sim))), jnp.int32(0), jnp.int32(1)).as_text()
    literals = re.findall(r"dense<(\"0x[0-9A-F]+\"|\[[^>]*\])>", text)
    assert max(map(len, literals), default=0) < 300
    assert jax.tree.structure(state) == jax.tree.structure(tiny.start(sim))


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_nothing_moves_between_host_and_device_inside_a_segment(devices, chunk):
    sim, _ = tiny.base(devices, chunk)
    state, (clock, rounds) = tiny.start(sim), jax.device_put((jnp.int32(0), jnp.int32(2)), mesh.replicated(mesh.make(devices)))
    with jax.transfer_guard("disallow"):
        state, record = sim.segment(sim.world, state, clock, rounds)
        jax.block_until_ready(record)


def test_first_states_are_strongly_typed():
    state = tiny.start(tiny.base()[0])
    assert not any(
        leaf.weak_type for leaf in jax.tree.leaves(state) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    assert {k: v.dtype.name for k, v in state.clients.items() if k != "model"} == {
        "rounds": "int32",
        "loss": "float32",
        "seen": "bool",
    }


def test_the_plan_says_what_runs_where():
    plan = tiny.base(4, 2)[0].plan
    params = tree.size(tiny.task().init(jax.random.key(0)))
    expected = {
        "devices": 4,
        "platform": "cpu",
        "chunk": 2,
        "lanes": 8,
        "clients": 20,
        "cohort": 10,
        "parameters": params,
        "table_bytes": 20 * (4 * params + 4 + 4 + 1),
    }
    assert {k: plan[k] for k in expected} == expected
    assert plan["data_bytes"] >= sum(v.nbytes for v in tiny.population().train.examples.values())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mesh.make(5), ("devices=5", "1, 2, 4")),
        (lambda: mesh.make(0), ("devices=0", "1, 2, 4")),
        (lambda: mesh.make(3), ("devices=3", "power of two")),
        (lambda: mesh.make(4, 3), ("devices=4", "models of 3", "choose 3")),
        (lambda: mesh.make(None, 5), ("model_devices=5", "4 cpu devices")),
        (lambda: tiny.build(slots=21), ("cohort=21", "1..20")),
        (lambda: tiny.build(slots=0), ("cohort=0", "1..20")),
        (lambda: tiny.build(lanes=6), ("lanes=6", "power of two")),
        (lambda: tiny.build(devices=4, lanes=2), ("lanes=2", "4 devices")),
        (lambda: tiny.build(lanes=0), ("lanes=0", "power of two")),
        (lambda: tiny.build(chunk=0), ("chunk=0",)),
        (lambda: clients.layout(mesh.make(1), 4, -1, 8), ("chunk=-1",)),
        (lambda: sync.build(tiny.task(), stamping(1), tiny.population(), tiny.scripted(), length=0), ("length=0",)),
    ],
)
def test_errors_name_the_value_and_the_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("slots, chunk", [(10, 1), (10, 3), (7, 2), (1, 4), (16, 16)])
def test_dealing_and_collecting_are_inverse(devices, slots, chunk):
    lay, x = clients.layout(mesh.make(devices), slots, chunk, 8), np.arange(slots)
    mask = x % 3 > 0
    dealt, back, filled, present = jax.jit(lambda x: (lay.deal(x), lay.collect(lay.deal(x)), lay.filled(), lay.filled(mask)))(x)
    assert dealt.shape == (lay.local * devices,) and lay.local % lay.chunk == 0
    np.testing.assert_array_equal(back, x)
    dealt = np.array(dealt)
    np.testing.assert_array_equal(np.sort(dealt[filled]), x)
    np.testing.assert_array_equal(dealt[: lay.local][: -(-slots // devices)], x[::devices])  # device 0 has slots 0, D, 2D, ...
    np.testing.assert_array_equal(np.sort(dealt[present]), x[mask])


X64 = """
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from engine import tiny
task = tiny.task(jnp.float64)
sim = tiny.build(the_task=task, devices=2, chunk=2)
state, record = tiny.run(sim, (2, 1))
assert state.server["body"]["kernel"].dtype == "float64" == state.clients["loss"].dtype == record.rounds["loss"].dtype
names = {k: v.dtype.name for k, v in {**record.rounds, "turns": state.clients["rounds"], "allowance": state.participation[2]}.items()}
expected = {"ids": "int32", "bytes_up": "uint32", "bytes_down": "uint32", "mask": "bool", "finite": "bool"}
expected |= {"turns": "int32", "allowance": "int32"}
assert {k: names[k] for k in expected} == expected, names
assert record.rounds["bytes_up"][0, 0] == 8 * sum(x.size for x in jax.tree.leaves(state.server))
assert record.rounds["finite"][0].all()
print("fine")
"""


def test_double_precision_belongs_to_the_experiment():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = os.pathsep.join([here, os.path.dirname(here)])
    out = subprocess.run(
        [sys.executable, "-c", X64],
        env={**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.stdout.strip() == "fine", out.stderr[-2000:]


@pytest.mark.full
def test_one_seed_among_several_is_that_seed_alone():
    """Seeds are one more vmap; cohorts come from the key, so that masks and trip counts differ between them."""
    method = tiny.averaging(tiny.task(), tiny.work(batch_size="full", epochs=3))
    sim = sync.build(tiny.task(), method, tiny.population(), bernoulli(tiny.N, tiny.SLOTS, q=(0.2, 0.4)), mesh=mesh.make(1), length=2)
    states = jax.vmap(lambda seed: sim.init(sim.world, jax.random.key(seed)))(jnp.arange(3))
    together = tiny.host(jax.jit(jax.vmap(sim.segment, (None, 0, None, None)))(sim.world, states, jnp.int32(0), jnp.int32(2)))
    alone = [tiny.host(sim.segment(sim.world, tiny.start(sim, seed), jnp.int32(0), jnp.int32(2))) for seed in range(3)]
    assert len({record.rounds["mask"].sum() for _, record in alone}) > 1
    for i, one in enumerate(alone):
        tiny.close(one, jax.tree.map(lambda x: x[i], together), but=("finite",))  # noqa: B023


def test_an_upload_that_breaks_without_its_loss_shows_in_the_aggregate():
    """No pass over each upload is spent on it: the round is told, not the client."""
    work_ = tiny.work()
    plain = tiny.averaging(tiny.task(), work_)

    def local(key, message, row, data):
        result = plain.local(key, message, row, data)
        broken = jax.tree.map(lambda x: jnp.where(data.clock == 1, jnp.inf, x), result.upload["model"])
        return result._replace(upload={"model": broken})

    _, record = tiny.run(tiny.build(plain._replace(local=local)), (3,))
    assert record.rounds["finite"][0].all() and record.rounds["finite"][1].all()
    np.testing.assert_array_equal(record.rounds["sound"][:2], [True, False])
    reports = {k: v[:2] for k, v in record.rounds.items()}
    with pytest.raises(run.Diverged, match="round 12: what the server made of the uploads is not finite"):
        run._check_finite(record._replace(rounds=reports), 10, 2)
