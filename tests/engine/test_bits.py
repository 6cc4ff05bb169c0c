"""What may not change the result: devices, chunks, the order of the cohort, empty slots, and whatever stands in unused memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import FOR_USERS, ahead
from engine import tiny
from engine.tiny import EMPTY, FREE, SLOTS, N, close, run, same

from fedjax_lab import keys
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts.cohorts.uniform import uniform

IDS = np.stack([np.random.default_rng(t).permutation(N)[:SLOTS] for t in range(8)])
IDS[0, 2] = EMPTY if EMPTY not in IDS[0] else IDS[0, 2]


@functools.cache
def base(devices=1, chunk=1, slots=SLOTS):
    return ahead(tiny.base(devices, chunk, slots)[0], options=FOR_USERS)


def script(ids=IDS, mask=True, allowance=FREE):
    return ids, mask, allowance


def reference():
    return run(base(), script=script())


@pytest.mark.parametrize("devices, chunk", [(4, 2), *(pytest.param(*row, marks=pytest.mark.full) for row in ((2, 1), (1, 8), (1, 10)))])
def test_the_same_bits_on_any_devices_and_for_chunk_one_lanes_all(devices, chunk):
    same(reference(), run(base(devices, chunk), script=script()))


@pytest.mark.full
def test_any_other_chunk_to_a_millionth():
    close(reference(), run(base(1, 7), script=script()))


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_the_order_of_the_cohort_is_of_no_account(devices, chunk):
    order = np.random.default_rng(1).permuted(IDS, axis=1)
    allowance = np.where(IDS % 3 == 0, 2, FREE)
    other = np.where(order % 3 == 0, 2, FREE)
    assert (order != IDS).any()
    same(
        *(run(base(devices, chunk), script=script(i, allowance=a)) for i, a in ((IDS, allowance), (order, other))),
        but=("participation",),
    )


def test_the_same_seed_twice_and_another_seed():
    first, again, other = (run(base(), seed=seed) for seed in (0, 0, 1))
    same(first, again)
    assert not np.array_equal(first[0].server["head"]["kernel"], other[0].server["head"]["kernel"])


def test_segments_may_be_cut_anywhere():
    states = [run(base(), segments)[0] for segments in ((4,), (1, 3), (2, 0, 1, 1))]
    same(states[0], states[1])
    same(states[0], states[2])


MASK = np.stack([np.random.default_rng(t).random(SLOTS) < 0.6 for t in range(8)])


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_what_stands_in_empty_slots_is_of_no_account(devices, chunk):
    sim = base(devices, chunk)
    clean = run(sim, script=script(mask=MASK))
    strangers = np.where(MASK, IDS, N - 1 - IDS)
    world = sim.world
    never = sorted(set(range(N)) - set(IDS[:3][MASK[:3]]))  # in empty slots only
    x = np.array(world.population.train.examples["x"])
    for client in never:
        x[tiny.rows_of(client)] = np.nan
    other = run(sim, script=script(strangers, MASK, np.where(MASK, FREE, -7)), world=tiny.with_train(world, x=x))
    same(clean, other, but=("participation", "'ids'"))
    heard = np.sort(clean[1].rounds["mask"][0])[::-1]
    np.testing.assert_array_equal(clean[1].rounds["mask"][0], heard)  # empty slots come last


@pytest.mark.full
def test_an_empty_slot_is_as_good_as_none():
    few = np.zeros((8, SLOTS), bool)
    few[:, [1, 2, 5, 6, 8, 9]] = True
    (state, record), (small, small_record) = (
        run(base(slots=SLOTS), script=script(mask=few)),
        run(base(slots=6), script=script(IDS[few].reshape(8, 6))),
    )
    same(state._replace(participation=()), small._replace(participation=()))
    same(record.evaluation, small_record.evaluation)
    for name, value in small_record.rounds.items():
        np.testing.assert_array_equal(value, record.rounds[name][:, :6] if value.ndim == 2 else record.rounds[name])


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_a_round_without_anybody_leaves_the_server_alone(devices, chunk):
    sim = base(devices, chunk)
    before = tiny.host(tiny.start(sim))
    after, record = run(sim, (2,), script=script(mask=False))
    same(before._replace(participation=()), after._replace(participation=()))
    assert not record.rounds["loss"].any() and not record.rounds["bytes_up"].any() and record.rounds["finite"][:2].all()


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_rows_of_nobody_are_of_no_account(devices, chunk):
    sim = base(devices, chunk)
    x, y = (np.array(sim.world.population.train.examples[k]) for k in "xy")
    x[-4:], y[-4:] = np.nan, 99
    same(run(sim), run(sim, world=tiny.with_train(sim.world, x=x, y=y)))


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_a_client_with_nan_is_named(devices, chunk):
    sim = base(devices, chunk)
    x = np.array(sim.world.population.train.examples["x"])
    bad = IDS[0, 4]
    x[tiny.rows_of(bad)][0] = np.nan
    _, record = run(sim, (1,), script=script(), world=tiny.with_train(sim.world, x=x))
    assert record.rounds["ids"][0][~record.rounds["finite"][0]].tolist() == [bad]


@pytest.mark.full
def test_duplicates_of_the_capacity_change_nothing():
    """The same clients beside one with ten times their examples, who never takes part."""
    people = tiny.population()
    train = people.train
    extra = {k: np.concatenate([v, np.resize(v, (400, *v.shape[1:]))]) for k, v in train.examples.items()}
    wide = people._replace(
        train=train._replace(
            examples=extra,
            size=np.where(np.arange(N) == 19, 400, train.size).astype(np.int32),
            offset=np.where(np.arange(N) == 19, len(train.examples["y"]), train.offset).astype(np.int32),
        )
    )
    ids = np.stack([np.random.default_rng(t).permutation(N - 1)[:SLOTS] for t in range(8)])
    same(run(base(), script=script(ids)), run(ahead(tiny.build(people=wide), options=FOR_USERS), script=script(ids)))


def test_slots_are_canonical_and_randomness_belongs_to_the_client():
    """Longest first, then by id; a client's result does not depend on who else is there."""
    sim = base()
    allowance = np.where(IDS == IDS[0, 0], 1, FREE)
    state, record = run(sim, (1,), script=script(allowance=allowance))
    size, ids = np.asarray(tiny.population().train.size), record.rounds["ids"][0]
    steps = np.where(ids == IDS[0, 0], 1, -(-size[ids] // 4))
    assert list(zip(-steps, ids, strict=True)) == sorted(zip(-steps, ids, strict=True))
    alone, _ = run(sim, (1,), script=script(mask=IDS == IDS[0, 1]))
    for part in ("body", "head"):
        np.testing.assert_array_equal(
            state.clients["model"][part]["kernel"][IDS[0, 1]], alone.clients["model"][part]["kernel"][IDS[0, 1]]
        )
    assert state.clients["rounds"].tolist() == [int(i in IDS[0]) for i in range(N)]
    assert state.clients["seen"].tolist() == [i in IDS[0] for i in range(N)]


def test_the_uniform_cohort_runs_and_depends_on_the_round():
    sim = sync.build(
        tiny.task(),
        tiny.averaging(tiny.task(), tiny.work(batch_size="full")),
        tiny.population(),
        uniform(N, 4),
        mesh=mesh.make(1),
        length=4,
    )
    state = sim.init(sim.world, jax.random.key(0))
    _, record = sim.segment(sim.world, state, jnp.int32(3), jnp.int32(2))
    for r in range(2):
        key = keys.purpose(keys.for_round(jax.random.key(0), 3 + r), "cohort")
        assert sorted(record.rounds["ids"][r].tolist()) == sorted(np.asarray(keys.shuffle(key, jnp.arange(4), N)).tolist())
