"""One client's training: the order of its batches, the masked loop, and what may not depend on the padding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine import tiny
from jax.sharding import PartitionSpec as P

from fedjax_lab import local
from fedjax_lab.engine import mesh
from fedjax_lab.types import Aux, ClientData, Stream, Task, View

KEY = jax.random.key(1)
SIZE = np.array([7, 0, 12, 1, 40], np.int32)
OFFSET = (np.cumsum(SIZE) - SIZE).astype(np.int32)


def stream():
    rows = np.arange(SIZE.sum())
    return Stream(
        {"row": jnp.asarray(rows), "x": jnp.asarray(np.random.default_rng(0).normal(size=(len(rows), 3)), jnp.float32)},
        OFFSET,
        SIZE,
    )


def client(i, allowance=tiny.FREE, capacity=40):
    view = View(jax.tree.map(jnp.asarray, stream()), jnp.int32(i), capacity)
    return ClientData(jnp.int32(i), jnp.int32(0), view, view, jnp.zeros(0), jnp.int32(allowance))


@functools.cache
def planner(capacity, **options):
    """A jitted (client, allowance, epochs, t) -> (steps, rows, mask of the t-th batches)."""

    def plan(i, allowance, epochs, t):
        plan = local.batches(KEY, client(i, allowance, capacity), tiny.work(epochs=epochs, **options))
        batch = jax.vmap(plan.at)(t)
        return plan.steps, batch["row"], batch["mask"]

    return jax.jit(plan)


def batches_of(i, allowance=tiny.FREE, capacity=40, epochs=1, **options):
    """The rows of each batch that a client sees, as lists."""
    steps, rows, mask = map(np.asarray, planner(capacity, **options)(i, allowance, epochs, jnp.arange(40)))
    return [list(r[m]) for r, m in zip(rows[:steps], mask, strict=False)]


def owned(i):
    return list(range(OFFSET[i], OFFSET[i] + SIZE[i]))


@pytest.mark.parametrize("i", [0, 2, 3, 4])
def test_each_example_once_an_epoch_and_the_rest_in_the_last_batch(i):
    seen = batches_of(i, batch_size=5, epochs=2)
    per_epoch = -(-SIZE[i] // 5)
    assert [len(b) for b in seen] == 2 * ([5] * (SIZE[i] // 5) + [SIZE[i] % 5] * int(SIZE[i] % 5 > 0))
    first, second = ([row for b in part for row in b] for part in (seen[:per_epoch], seen[per_epoch:]))
    assert sorted(first) == sorted(second) == owned(i)
    assert SIZE[i] < 5 or first != second  # reshuffled


def test_local_steps_run_on_through_the_epochs():
    assert batches_of(0, batch_size=5, local_steps=5) == batches_of(0, batch_size=5, epochs=3)[:5]
    assert [len(batches_of(i, batch_size=5, local_steps=5)) for i in range(5)] == [5, 0, 5, 5, 5]


def test_full_batches_hold_everything():
    assert batches_of(2, batch_size="full", epochs=3) == [owned(2)] * 3
    assert batches_of(4, batch_size="full", local_steps=2) == [owned(4)] * 2
    assert sorted(batches_of(0, batch_size=64)[0]) == owned(0) and len(batches_of(0, batch_size=64)) == 1


def test_the_allowance_cuts_the_steps_and_changes_no_batch():
    assert batches_of(2, allowance=2, batch_size=5) == batches_of(2, batch_size=5)[:2]
    assert batches_of(2, allowance=0, batch_size=5) == []


def test_a_client_without_data_takes_no_step():
    for options in ({"batch_size": 5}, {"batch_size": "full"}, {"batch_size": 5, "local_steps": 5}):
        assert batches_of(1, **options) == []
        assert list(tiny.work(**options).steps(jnp.asarray(SIZE))) == [len(batches_of(i, **options)) for i in range(5)]


@pytest.mark.parametrize("batch_size", [5, "full"])
def test_the_capacity_does_not_enter_the_order(batch_size):
    for i in range(5):
        assert batches_of(i, batch_size=batch_size) == batches_of(i, batch_size=batch_size, capacity=400)


def test_rows_go_through_the_index_and_masked_ones_stay_inside():
    examples = {"v": jnp.arange(10.0)}
    view = View(Stream(examples, jnp.array([0, 3]), jnp.array([3, 0]), jnp.array([9, 4, 2])), jnp.int32(0), 5)
    np.testing.assert_array_equal(view.whole()["v"][:3], [9, 4, 2])
    np.testing.assert_array_equal(view.whole()["mask"], [True] * 3 + [False] * 2)
    empty = view._replace(client=jnp.int32(1)).whole()  # its offset lies behind the end
    assert np.isfinite(empty["v"]).all() and not empty["mask"].any()


def least_squares():
    """Loss 1/2 mean (w.x - 1)^2 and the running mean of x as statistics."""

    def loss(params, batch, key):
        mask, x = batch["mask"], batch["x"]
        each = 0.5 * (x @ params["w"] - 1) ** 2
        count = jnp.maximum(mask.sum(), 1)
        stats = {"mean": 0.9 * params["stats"]["mean"] + 0.1 * jnp.where(mask[:, None], x, 0).sum(0) / count}
        return jnp.where(mask, each, 0).sum() / count, Aux(stats)

    return Task("ls", lambda key: {"w": jnp.zeros(3), "stats": {"mean": jnp.zeros(3)}}, None, loss, None)


def descend(i, optimizer, work, capacity=40):
    data = client(i, capacity=capacity)
    return local.descend(local.batches(KEY, data, work), least_squares().init(None), local.gradient(least_squares()), optimizer)


@pytest.mark.parametrize("name", ["sgd", "momentum:0.9", "adam"])
def test_descend_is_the_loop_written_by_hand(name):
    work = tiny.work(lr=0.05, batch_size=5, epochs=2, client_optimizer=name)
    x, w, mean, losses = np.asarray(stream().examples["x"], np.float64), np.zeros(3), np.zeros(3), []
    m, v, t = np.zeros(3), np.zeros(3), 0
    for rows in batches_of(2, batch_size=5, epochs=2):
        error = x[rows] @ w - 1
        losses.append(0.5 * np.mean(error**2))
        g = error @ x[rows] / len(rows)
        mean, t = 0.9 * mean + 0.1 * x[rows].mean(0), t + 1
        m = {"sgd": g, "momentum:0.9": g + 0.9 * m, "adam": 0.1 * g + 0.9 * m}[name]
        v = 0.001 * g**2 + 0.999 * v
        w = w - 0.05 * (m if name != "adam" else m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    out = jax.jit(lambda: descend(2, work.optimizer, work))()
    np.testing.assert_allclose(out.params["w"], w, rtol=2e-5)
    np.testing.assert_allclose(out.params["stats"]["mean"], mean, rtol=1e-5, atol=1e-7)
    assert float(out.loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_descend_leaves_a_client_without_data_alone():
    out = jax.jit(lambda: descend(1, optax.sgd(1.0), tiny.work()))()
    assert float(out.loss) == 0 and not np.any(out.params["w"]) and not np.any(out.params["stats"]["mean"])


def test_training_does_not_depend_on_the_capacity():
    work = tiny.work(batch_size=5, epochs=3)
    ends = [jax.jit(jax.vmap(lambda i, c=c: descend(i, work.optimizer, work, c)))(jnp.arange(5)) for c in (40, 400)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def count(steps):
    """Folds 1 + 10 t over the steps of a client, and how often the body ran."""

    def body(t, key, batch, carry):
        return carry + 1 + 10 * t

    return local.loop(local.Batches(steps, lambda t: {}, KEY), jnp.int32(0), body)


def expected(steps):
    return steps + 10 * steps * (steps - 1) // 2


def test_the_loop_is_the_identity_beyond_a_clients_own_steps():
    steps = np.array([[3, 0], [7, 1]], np.int32)
    assert [int(count(jnp.int32(s))) for s in steps.ravel()] == list(expected(steps).ravel())
    np.testing.assert_array_equal(jax.jit(jax.vmap(count))(steps[0]), expected(steps[0]))
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(count)))(steps), expected(steps))


def test_nan_beyond_a_clients_own_steps_is_dropped():
    def run(steps):
        return local.loop(
            local.Batches(steps, lambda t: {}, KEY), jnp.float32(1), lambda t, key, batch, y: jnp.where(t < 2, y, jnp.nan)
        )

    np.testing.assert_array_equal(jax.vmap(run)(jnp.array([2, 1, 5])), [1, 1, np.nan])


def test_longest_is_unbatched_under_any_vmap():
    steps = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
    assert int(local.longest(jnp.int32(4))) == 4
    for f in (jax.vmap(local.longest, out_axes=None), jax.jit(jax.vmap(local.longest, out_axes=None))):
        assert int(f(steps[1])) == 5
    assert int(jax.vmap(jax.vmap(local.longest, out_axes=None), out_axes=None)(steps)) == 5
    trip = jax.make_jaxpr(jax.vmap(jax.vmap(count)))(steps)
    loops = [e for e in trip.eqns if e.primitive.name == "while"]
    assert len(loops) == 1 and loops[0].params["cond_jaxpr"].out_avals[0].shape == ()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_loop_runs_inside_shard_map(devices):
    steps = np.array([3, 0, 7, 1, 2, 2, 5, 0], np.int32)
    spec = P(mesh.CLIENTS)
    run = jax.jit(jax.shard_map(jax.vmap(lambda s: count(s) + 0 * s), mesh=mesh.make(devices), in_specs=spec, out_specs=spec))
    np.testing.assert_array_equal(run(steps), expected(steps))
