"""Populations and client tables off the devices give the bits of those on them, and their memory does not follow the population."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_lab import registry
from fedjax_lab.engine import mesh, stream, sync, tables
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.wires.codes import remembered
from fedjax_lab.parts.wires.topk import topk
from fedjax_lab.types import Population, Stream

TASK = tiny.task()


def subject(name: str = "scaffold", **options):
    method = registry.make(name, TASK, lr=0.1, batch_size=4, **options)
    return method._replace(up={"model": remembered(topk(0.25))})


def trained(method, people, cuts=(2, 2, 1), cohort=4, length=3, **how):
    sim = sync.build(TASK, method, people, uniform(people.clients, cohort), mesh=mesh.make(2), length=length, **how)
    state, clock, records = sim.init(sim.world, jax.random.key(0)), 0, []
    for rounds in cuts:
        state, record = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(rounds))
        records.append(jax.device_get(({k: v[:rounds] for k, v in record.rounds.items()}, record.evaluation)))
        clock += rounds
    return sim, state, records


def rows_of(state):
    if isinstance(state.clients, tables.Rows):
        return state.clients.rows, state.clients.known
    return jax.device_get((state.clients, state.wires)), None


@pytest.mark.parametrize("how", [
    *(pytest.param(how, marks=pytest.mark.full) for how in ({"streamed": True}, {"client_state": "disk"}, {"client_state": "host"})),
    {"streamed": True, "client_state": "disk"},
], ids=str)
def test_the_same_bits_as_on_the_device(how):
    people, method = tiny.population(), subject()
    _, resident, expected = trained(method, people)
    _, state, records = trained(method, people, **how)
    jax.tree.map(np.testing.assert_array_equal, records, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.server), jax.device_get(resident.server))
    rows, known = rows_of(state)
    whole, _ = rows_of(resident)
    if known is None:
        jax.tree.map(np.testing.assert_array_equal, rows, whole)
    else:
        met = np.unique(np.concatenate([r[0]["ids"].ravel() for r in expected]))
        np.testing.assert_array_equal(np.flatnonzero(known), met)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[met], b[met]), rows, whole)


@pytest.mark.full
def test_personal_models_of_a_streamed_population():
    people, method = tiny.population(), registry.make("fedavgft", TASK, lr=0.1, batch_size=4)
    expected, records = (trained(method, people, eval_clients=3, **how)[2] for how in ({}, {"streamed": True}))
    jax.tree.map(np.testing.assert_array_equal, records, expected)
    assert "personal_client_test_accuracy_mean" in expected[0][1]


def test_a_method_that_asks_everybody_is_refused():
    method = registry.make("fedavg-m", TASK, start="gradient")
    with pytest.raises(ValueError, match="'fedavg-m' asks all clients at once"):
        trained(method, tiny.population(), streamed=True)


class Counted:
    """An array that notes which of its rows were read."""

    def __init__(self, array):
        self.array, self.read, self.shape, self.dtype = array, np.zeros(len(array), bool), array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.read[rows] = True
        return self.array[rows]


def test_only_what_a_segment_touches_is_read():
    people = tiny.population()
    x = Counted(np.asarray(people.train.examples["x"]))
    watched = people._replace(train=people.train._replace(examples={**people.train.examples, "x": x}))
    _, _, records = trained(subject(), watched, cuts=(1,), cohort=2, length=1, streamed=True)
    owner = np.repeat(np.arange(people.clients), people.train.size)
    touched = owner[np.flatnonzero(x.read)]
    first = records[0][0]["ids"].ravel()
    assert set(first) <= set(touched) and len(set(touched)) <= 4  # this segment's two clients, and those of the one after it


def test_a_process_reads_its_own_piece_of_a_share():
    people = tiny.population()
    found, room = np.array([7, 1, 12, 4], np.int32), stream.Bounds(6, 120, 60)
    whole = stream.pack(people, found, room, True)
    pieces, read = [], []
    for p in range(4):
        x = Counted(np.asarray(people.train.examples["x"]))
        watched = people._replace(train=people.train._replace(examples={**people.train.examples, "x": x}))
        pieces.append(stream.pack(watched, found, room, True, (p, 4)))
        read.append(x.read)
    assert np.sum(read, 0).max() == 1 and np.sum(read) == people.train.size[found].sum() and all(piece.any() for piece in read[:2])
    jax.tree.map(np.testing.assert_array_equal, *((one.facts, one.population) for one in (pieces[3], whole)))
    for field, array in whole.examples.items():
        np.testing.assert_array_equal(np.concatenate([piece.examples[field] for piece in pieces]), array)


def test_room_is_for_the_largest_clients():
    size = np.array([3, 9, 1, 9, 4])
    assert [stream.largest(size, k) for k in (1, 2, 3, 5, 9)] == [9, 18, 22, 26, 26]
    assert stream.most(size) == 9 and stream.most(np.zeros(0, int)) == 0


def test_a_share_holds_its_clients_in_order():
    size = np.array([2, 1, 3], np.int32)
    train = Stream({"x": np.arange(6.0)[:, None]}, np.array([4, 3, 0]), size)
    test = Stream({"x": np.zeros((4, 1))}, np.array([0, 2, 2]), np.array([2, 0, 1], np.int32), np.array([3, 1, 2]))
    people = Population(train, test, np.eye(3, dtype=np.float32))
    share = stream.pack(people, np.array([2, 0, 2, stream.NOBODY], np.int32), stream.Bounds(3, 6, 3), True)
    assert share.facts.id.tolist() == [0, 2, stream.NOBODY] and share.facts.size.tolist() == [2, 3, 0]
    assert share.examples["x"][:5, 0].tolist() == [4, 5, 0, 1, 2] and share.population.train.offset.tolist()[:2] == [0, 2]
    assert share.population.test.index[:3].tolist() == [3, 1, 2] and share.population.test.size.tolist() == [2, 1, 0]


@pytest.mark.full
def test_another_run_of_the_same_simulation_is_not_fed_with_this_ones_clients():
    people, method = tiny.population(), subject()
    how = {"mesh": mesh.make(1), "length": 1}
    sims = [sync.build(TASK, method, people, uniform(people.clients, 3), **how, streamed=s) for s in (False, True)]
    ids = []
    for sim in sims:
        first, second = (sim.init(sim.world, jax.random.key(k)) for k in (0, 1))
        for state in (first, second):
            state, record = sim.segment(sim.world, state, jnp.int32(0), jnp.int32(1))
            state, record = sim.segment(sim.world, state, jnp.int32(1), jnp.int32(1))
            ids.append((record.rounds["ids"].tolist(), float(record.rounds["loss"][0])))
    assert ids[:2] == ids[2:] and ids[0] != ids[1]
