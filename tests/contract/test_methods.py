"""What holds for every registered method, on one small task and one program a method (two with --all).

Batches are full, which compiles fast; clients are ragged all the same, since they are allowed one to three steps. The program is
compiled ahead, for the types of a first state, so that whatever is computed here shows that one program serves.
"""

from __future__ import annotations

import inspect
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import FOR_USERS, ahead
from engine import tiny
from engine.tiny import EMPTY, SLOTS, N, close, same
from etils import epath

from fedjax_lab import registry, spec
from fedjax_lab.engine import checkpoint
from fedjax_lab.types import Method, Simulation

IDS = np.stack([np.random.default_rng(t).permutation(np.delete(np.arange(N), EMPTY))[:SLOTS] for t in range(8)])
MASK = np.stack([np.random.default_rng(t).random(SLOTS) < 0.7 for t in range(8)])
AT = np.argmin(MASK, 1)  # an empty slot of each round
WITH_EMPTY = np.where(np.arange(SLOTS) == AT[:, None], EMPTY, IDS)
SEGMENTS = (2, 1)
OTHERS = {"rerce-fed": {"weight": 1.0}, "rerce-fed-clu": {"weight": 1.0}, "netlasso": {}}  # methods for linear regression, with options for float32
FEW = {  # options that do not amplify rounding
    "fedftg": {"turns": 2, "generator_lr": 1e-4, "server_batch": 16},  # few and short steps of fixed length
    "fedkseed": {"eps": 0.5},  # a loss near 1 is rounded by 1e-7, which is divided by eps
}


class Subject(NamedTuple):
    name: str
    factory: object
    method: Method
    built: Simulation
    sim: Simulation  # the same, compiled

    @property
    def task(self):
        return tiny.linear_task() if self.name in OTHERS else tiny.task()

    @property
    def silent(self) -> bool:
        """Whether no model is sent, so that the server's stays where it was."""
        return self.name in ("local", "fedmd", "knfu")

    @property
    def everyone(self) -> bool:
        """Whether clients have a part in rounds for which they were not drawn."""
        return any(phase.everyone for phase in self.method.exchanges)


@pytest.fixture(scope="module", params=list(registry.catalog("method")))
def subject(request):
    task = tiny.linear_task() if request.param in OTHERS else tiny.task()
    method = registry.make(request.param, task, batch_size="full", epochs=3, **OTHERS.get(request.param, FEW.get(request.param, {})))
    built = tiny.build(method, the_task=task, devices=2, chunk=2, people=people_of(method))
    return Subject(request.param, registry.catalog()[request.param], method, built, ahead(built))


def people_of(method):
    """Whom the method is for."""
    return tiny.vertical() if method.info.schedule == "vertical" else tiny.semi() if method.info.family == "labels" else tiny.population()


def run(sim, ids=IDS, mask=MASK, segments=SEGMENTS, **more):
    return tiny.run(sim, segments, script=(ids, mask, 1 + ids % 3), **more)


def test_its_state_keeps_its_types_and_any_cut_gives_the_same_bits(subject):
    sim = subject.sim
    state, record = run(sim)
    same(state, run(sim, segments=(2, 0, 1))[0])
    first = jax.tree.map(lambda x: (jax.typeof(x), x.sharding), tiny.start(sim))  # weak types too: nothing is traced again
    later, _ = sim.segment(sim.world, tiny.start(sim), jnp.int32(0), jnp.int32(1))
    assert first == jax.tree.map(lambda x: (jax.typeof(x), x.sharding), later)
    assert bool(subject.method.info.stateful) == bool(jax.tree.leaves(state.clients)) or subject.name == "fedbn"  # this task has no such layers
    start = subject.method.deploy(tiny.start(sim).server)
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, subject.method.deploy(state.server))), strict=True)]
    assert any(moved) != subject.silent
    assert np.isfinite([record.rounds["loss"][0], *record.evaluation.values()]).all()
    assert record.rounds["finite"][0][record.rounds["mask"][0]].all()


def test_no_gradient_is_added_over_the_devices(subject):
    """As it would be with respect to a constant in `local`, which all devices share: start from what was sent, or from a key."""
    lines = subject.sim.segment.as_text().split("\n")
    assert not [line for line in lines if "all-reduce(" in line and "shard_map" in line]


def test_the_order_of_the_cohort_changes_nothing(subject):
    same(run(subject.sim), run(subject.sim, IDS[:, ::-1], MASK[:, ::-1]), but=("participation", "'ids'"))


def test_it_goes_on_from_a_checkpoint_exactly(subject, tmp_path):
    sim, folder = subject.sim, epath.Path(tmp_path)
    like = subject.built.init.eval_shape(sim.world, jax.random.key(0))
    state, _ = sim.segment(sim.world, tiny.start(sim, script=(IDS, MASK, 1 + IDS % 3)), jnp.int32(0), jnp.int32(2))
    with checkpoint.manager(folder, 1) as manager:
        checkpoint.save(manager, 2, {}, state=state)
        through, _ = sim.segment(sim.world, state, jnp.int32(2), jnp.int32(1))  # the state that is being written is given away
    state = checkpoint.place(checkpoint.newest(folder, "state").groups["state"], like)
    again, _ = sim.segment(sim.world, state, jnp.int32(2), jnp.int32(1))
    same(tiny.host(through), tiny.host(again))


@pytest.mark.full
def test_chunk_and_devices_change_nothing(subject):
    other = tiny.build(subject.method, the_task=subject.task, people=people_of(subject.method))
    one, two = (ahead(sim, init=False, options=FOR_USERS) for sim in (subject.built, other))
    close(run(one), run(two), rel=3e-6)  # steps of fixed length amplify rounding


def test_empty_slots_and_clients_without_data_change_nothing(subject):
    state, record = run(subject.sim)
    x = np.array(subject.sim.world.population.train.examples["x"])
    for client in set(range(N) if not subject.everyone else ()) - set(IDS[:3][MASK[:3]]):
        x[tiny.rows_of(client)] = np.nan
    strangers = np.where(MASK, IDS, N - 1 - IDS)
    other, other_record = run(subject.sim, strangers, world=tiny.with_train(subject.sim.world, x=x))
    same(state.server, other.server)
    same(state.clients, other.clients)
    assert other_record.rounds["loss"][0] == record.rounds["loss"][0]
    joined, joined_record = run(subject.sim, WITH_EMPTY, MASK | (np.arange(SLOTS) == AT[:, None]))
    same(subject.method.deploy(joined.server), subject.method.deploy(state.server))
    assert joined_record.rounds["mask"][0].sum() == MASK[2].sum() + 1


def test_a_round_without_anybody_is_finite(subject):
    state, record = run(subject.sim, mask=False)
    for leaf in jax.tree.leaves((state.server, state.clients)):
        assert not np.issubdtype(leaf.dtype, np.floating) or np.isfinite(leaf).all()
    if not subject.everyone:
        before = tiny.host(subject.sim.init(subject.sim.world, jax.random.key(0)))
        same(before.clients, state.clients)
        assert record.rounds["loss"][0] == 0


def test_a_client_with_nan_is_named(subject):
    x, bad = np.array(subject.sim.world.population.train.examples["x"]), IDS[0][MASK[0]][1]
    x[tiny.rows_of(bad)] = np.nan
    _, record = run(subject.sim, segments=(1,), world=tiny.with_train(subject.sim.world, x=x))
    rounds = {k: v[0] for k, v in record.rounds.items()}
    of_all = np.flatnonzero(~rounds.get("all_finite", np.ones(N, bool))).tolist()  # if that exchange breaks, the others do too
    assert (of_all or rounds["ids"][rounds["mask"] & ~rounds["finite"]].tolist()) == [bad]


def test_bytes_are_reported_both_ways(subject):
    rounds = run(subject.sim, segments=(1,) if subject.name == "oneshot-vfl" else SEGMENTS)[1].rounds  # which has one round
    for way in ("bytes_up", "bytes_down"):
        assert rounds[way].dtype == np.uint32
        moved, there = rounds[way][0] > 0, rounds["mask"][0] & (subject.name != "local")  # which sends nothing
        there &= way == "bytes_up" or subject.name != "netlasso"  # whose nodes send to each other
        if (subject.name, way) == ("analyticfl", "bytes_up"):  # which sends once, some of these clients before
            assert moved.any() and not moved.all()
            there &= moved
        np.testing.assert_array_equal(moved | there & np.any(rounds.get(f"all_{way}", False)), there)


def test_its_options_are_documented_and_others_refused(subject):
    options = spec.options(subject.factory)
    assert {"lr", "epochs", "local_steps", "batch_size", "client_optimizer", "lr_decay"} <= {o.name for o in options}
    assert not [o.name for o in options if not o.help or o.required]
    for call in (lambda: registry.make(subject.name, subject.task, nonsense=1), lambda: subject.factory(subject.task, nonsense=1)):
        with pytest.raises(ValueError, match="nonsense") as error:
            call()
        assert all(o.name in str(error.value) for o in options) and "\n" not in str(error.value)


def test_its_card_and_its_file_are_complete(subject):
    info, module = subject.method.info, sys.modules[subject.factory.factory.__module__]
    assert (info.name, info.kind) == (subject.name, "method") and info == subject.factory.info
    assert len(info.paper) > 10 and 1950 < info.year < 2030 and info.summary.endswith(".")
    assert module.__name__.split(".")[2] == info.family
    assert all(word in module.__doc__ for word in ("Keeps", "Reduces", "Departs", "(1)")) and str(info.year) in module.__doc__
    parts = {
        sys.modules[x.__module__] for x in vars(module).values() if getattr(x, "__module__", "").startswith("fedjax_lab.parts")
    }
    lines = [line for m in (module, *parts) for line in inspect.getsource(m).split("\n")]
    assert any("(1)" in line.partition("#")[2] for line in lines)  # equation numbers recur at the lines that implement them
    assert inspect.getsource(module).count("\n") < 200
