"""The engine replays a rolled-out schedule: clients start from earlier models, with the randomness of the round they started in."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from engine import tiny
from engine.tiny import N, close, same
from etils import epath

from fedjax_lab import keys, local
from fedjax_lab.engine import checkpoint, mesh, sync
from fedjax_lab.events import Arrival, Fleet, Update
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.schedules.buffered import buffered
from fedjax_lab.parts.schedules.replay import replay
from fedjax_lab.types import ClientData, Method, Result, View

SEED, ROUNDS = 5, 8
STEPS = np.asarray(tiny.work().steps(jnp.asarray(tiny.population().train.size)))


def rolled(cohort, buffer, law, **more):
    return buffered(Fleet(jax.random.key(SEED), N, cohort, ROUNDS, STEPS), buffer=buffer, law=law, **more)


def build(participation, chunk=2, devices=1, method=None) -> object:
    task = tiny.task()
    return sync.build(task, method or tiny.averaging(task, tiny.work()), tiny.population(), participation, mesh=mesh.make(devices), chunk=chunk,
                      length=ROUNDS, eval_batch=3)


def after(sim, segments=(ROUNDS,), change=lambda state: state):
    state, clock, record = change(sim.init(sim.world, jax.random.key(SEED))), 0, None
    for count in segments:
        state, record = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(count))
        clock += count
    return tiny.host(state), tiny.host(record)


@functools.cache
def late():
    updates = rolled(12, 4, "lognormal:1", max_staleness=5)
    return updates, build(replay(updates))


@functools.cache
def done():
    return after(late()[1])


def test_equal_delays_with_a_buffer_like_the_cohort_are_synchronous_rounds_to_the_bit():
    asynchronous, record = after(build(replay(rolled(6, 6, "fixed:3"))))
    synchronous, other = after(build(uniform(N, 6)))
    same(asynchronous.server, synchronous.server)
    same(asynchronous.clients, synchronous.clients)
    for name in set(other.rounds):
        np.testing.assert_array_equal(record.rounds[name], other.rounds[name], err_msg=name)
    np.testing.assert_array_equal(record.rounds["time"], 3 * np.arange(1, ROUNDS + 1))


def test_every_upload_is_consumed_once():
    updates, _ = late()
    state, record = done()
    assert max(n - a.base for n, u in enumerate(updates) for a in u.arrivals) >= 3
    assert state.versions["head"]["kernel"].shape[0] == 1 + max(n - a.base for n, u in enumerate(updates) for a in u.arrivals)
    counts = np.bincount([a.client for u in updates for a in u.arrivals], minlength=N)
    np.testing.assert_array_equal(state.clients["rounds"], counts)  # each client counts its own trainings
    assert counts.max() > 1
    np.testing.assert_array_equal(record.rounds["uploads"], 4 * np.arange(1, ROUNDS + 1))
    for name in ("rejected", "waiting", "training"):
        np.testing.assert_array_equal(record.rounds[name], [getattr(u, name) for u in updates])


def test_a_client_starts_from_the_model_it_was_sent():
    """One client at a time, in a plain loop that keeps all models."""
    updates, _ = late()
    task, people, root = tiny.task(), tiny.population(), jax.random.key(SEED)
    models = [task.init(keys.purpose(root, "params"))]
    wide = int(people.train.size.max())

    @jax.jit
    def change(model, client, base):
        key = keys.purpose(keys.purpose(keys.for_client(keys.for_round(root, base), client), "phase0"), "local")
        data = ClientData(client, base, View(people.train, client, wide), None, None, jnp.int32(tiny.FREE))
        y = local.descend(local.batches(key, data, tiny.work()), model, local.gradient(task), tiny.work().optimizer)
        return jax.tree.map(jnp.subtract, y.params, model)

    sizes = np.asarray(people.train.size)
    people = jax.tree.map(jnp.asarray, people._replace(manifest={}))
    for update in updates:
        total, weight = jax.tree.map(jnp.zeros_like, models[0]), 0
        for a in update.arrivals:
            moved = change(models[a.base], jnp.int32(a.client), jnp.int32(a.base))
            total = jax.tree.map(lambda t, m, n=sizes[a.client]: t + n * m, total, moved)
            weight += sizes[a.client]
        models.append(jax.tree.map(lambda w, t, n=weight: w + t / n, models[-1], total))
    close(tiny.host(models[-1]), done()[0].server, rel=1e-5)


def test_it_goes_on_in_the_middle_of_a_buffer_exactly(tmp_path):
    updates, sim = late()
    assert any(u.training + u.waiting for u in updates[:5])
    state, _ = sim.segment(sim.world, sim.init(sim.world, jax.random.key(SEED)), jnp.int32(0), jnp.int32(5))
    with checkpoint.manager(epath.Path(tmp_path), 1) as manager:
        checkpoint.save(manager, 5, {}, state=state)
    like = sim.init.eval_shape(sim.world, jax.random.key(0))
    state = checkpoint.place(checkpoint.newest(epath.Path(tmp_path), "state").groups["state"], like)
    state, _ = sim.segment(sim.world, state, jnp.int32(5), jnp.int32(ROUNDS - 5))
    same(tiny.host(state), done()[0])
    same(after(sim, (1, 2, 0, 5))[0], done()[0])


def test_what_stands_in_empty_slots_changes_nothing():
    updates = [Update(1.0, (Arrival(2, 0), Arrival(7, 0), Arrival(9, 0))), Update(2.0, ()), Update(3.0, (Arrival(2, 1, 1, 2.0),))]
    sim = build(replay(updates + [Update(4.0, (Arrival(7, 3), Arrival(9, 2)))] * (ROUNDS - 3)))

    def poison(state):
        table = state.participation
        empty = table.ids < 0
        spoiled = table._replace(base=jnp.where(empty, 0, table.base), allowance=jnp.where(empty, -9, table.allowance),
                                 factor=jnp.where(empty, jnp.nan, table.factor))
        return state._replace(participation=spoiled)

    (clean, record), (other, _) = after(sim), after(sim, change=poison)
    same(clean._replace(participation=()), other._replace(participation=()))
    assert record.rounds["heard"].sum(1).tolist() == [3, 0, 1] + [2] * (ROUNDS - 3)
    assert record.rounds["steps0"][2].tolist()[0] == 1  # the allowance
    x = np.array(sim.world.population.train.examples["x"])
    for client in set(range(N)) - {2, 7, 9}:
        x[tiny.rows_of(client)] = np.nan
    state = sim.init(sim.world, jax.random.key(SEED))
    state, _ = sim.segment(tiny.with_train(sim.world, x=x), state, jnp.int32(0), jnp.int32(ROUNDS))
    same(tiny.host(state.server), clean.server)


def test_the_method_hears_of_staleness_and_factor():
    def heard(key, message, client, data):
        values = {"staleness": data.staleness, "factor": data.factor, "clock": data.clock, "sent": message["model"]["count"]}
        return Result({"model": {"count": jnp.float32(1)}}, 1.0, metrics={k: jnp.float32(v) for k, v in values.items()})

    method = Method(heard, init_server=lambda key, params, census: {"count": jnp.float32(0)}, deploy=lambda server: tiny.task().init(jax.random.key(0)))
    updates = [Update(float(n), (Arrival(3, max(0, n - 2), factor=n + 0.5),)) for n in range(ROUNDS)]
    _, record = after(build(replay(updates), method=method))
    bases = np.maximum(np.arange(ROUNDS) - 2, 0)
    np.testing.assert_array_equal(record.rounds["staleness"], np.arange(ROUNDS) - bases)
    np.testing.assert_array_equal(record.rounds["factor"], np.arange(ROUNDS) + 0.5)
    np.testing.assert_array_equal(record.rounds["clock"], bases)
    np.testing.assert_array_equal(record.rounds["sent"], bases)  # every update adds one: the model after `base` updates


def test_a_client_may_ask_again_and_the_server_too():
    """Of two exchanges the first starts from an earlier model and asks for the newest one in mid-training; the second is with the present one."""
    def asks(key, message, client, data):
        fresh = data.download(data.id % 6)
        values = {"clock": data.clock, "then": fresh.clock, "sent": message["model"]["count"], "newer": fresh.message["model"]["count"]}
        return Result({"model": {"count": jnp.float32(1)}}, 1.0, keep=data.id, metrics={k: jnp.float32(v) for k, v in values.items()})

    def told(key, message, client, data):
        return Result({}, 0.0, metrics={"now": message["model"]["count"], "kept": jnp.float32(data.keep), "late": jnp.float32(data.staleness)})

    base = Method(asks, init_server=lambda key, params, census: {"count": jnp.float32(0)}, deploy=lambda server: tiny.task().init(jax.random.key(0)),
                  downloads=True)
    second = base.phase(local=told, serve=lambda key, server, aggregate, cohort: server, now=True)
    fleet = Fleet(jax.random.key(SEED), N, 8, ROUNDS, np.full(N, 5), watched=True)
    updates = buffered(fleet, buffer=1, law="exponential")
    _, record = after(build(replay(updates), method=base._replace(phases=(base.phase(), second))))
    times, heard = [u.time for u in updates], [u.arrivals[0] for u in updates]
    then = [a.base if a.client % 6 == 0 else min(n, max(a.base, sum(t <= a.ends[a.client % 6 - 1] for t in times))) for n, a in enumerate(heard)]
    assert [a.base for a in heard] != then != list(range(ROUNDS))
    for name, expected in (("then", then), ("newer", then), ("sent", [a.base for a in heard]), ("now", np.arange(1, ROUNDS + 1)),
                           ("kept", [a.client for a in heard]), ("late", np.zeros(ROUNDS))):
        np.testing.assert_array_equal(record.rounds[name], expected, err_msg=name)
    extra = np.array([t > a.base for t, a in zip(then, heard, strict=True)])
    np.testing.assert_array_equal(record.rounds["bytes_down"][:, 0], 4 * (2 + extra))  # nothing is sent of what a client has


def test_chunk_and_devices_change_nothing():
    close(after(build(replay(late()[0]), chunk=1, devices=2))[0]._replace(key=()), done()[0]._replace(key=()), rel=3e-6)
