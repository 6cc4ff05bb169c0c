"""Attacks in the engine: who attacks, what is left as it was, and that nothing else notices."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_lab import tree
from fedjax_lab.engine import ledger, malice, mesh, sync
from fedjax_lab.types import Adversary, Attack, Cohort, Stacked

KEY = jax.random.key(4)
FLIP = Attack(0.2, forge=lambda key, sight: tree.scale(-3.0, sight.own))
NOISE = Attack(0.1, forge=lambda key, sight: jax.tree.map(lambda v: jax.random.normal(key, v.shape), sight.own))
LABELS = Attack(0.3, poison=lambda batch, rank, classes: {**batch, "y": classes - 1 - batch["y"]})
IDLE = Attack(0.2, idle=True)
MIX = (FLIP, NOISE, IDLE)


def attacked(*attacks):
    return Adversary(attacks, KEY)


@functools.cache
def simulation(*attacks, devices=1):
    method = tiny.averaging(tiny.task(), tiny.work())
    return sync.build(tiny.task(), method, tiny.population(), tiny.scripted(), mesh=mesh.make(devices), length=4,
                      adversary=attacked(*attacks) if attacks else None)


def trained(sim, rounds=(4,), script=None):
    state = sim.init(sim.world, jax.random.key(1))
    state = state if script is None else state._replace(participation=script(state.participation))
    clock = 0
    for count in rounds:
        state, record = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(count))
        clock += count
    return jax.device_get(state.server), record


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def who(adversary):
    return np.asarray(malice.members(adversary, tiny.N, jnp.arange(tiny.N)))


def test_members_are_a_static_set_of_the_declared_size_and_groups_do_not_overlap():
    adversary = attacked(FLIP, LABELS, IDLE)
    marks = [np.asarray(member) for _, member, _ in malice.groups(adversary, tiny.N, jnp.arange(tiny.N))]
    assert [mark.sum() for mark in marks] == [4, 6, 4] == malice.counts(adversary, tiny.N)
    assert np.sum(marks, 0).max() == 1 and np.array_equal(np.any(marks, 0), who(adversary))
    ranks = [np.sort(np.asarray(rank)[member]) for _, member, rank in malice.groups(adversary, tiny.N, jnp.arange(tiny.N))]
    assert [r.tolist() for r in ranks] == [list(range(n)) for n in (4, 6, 4)]
    assert not np.array_equal(who(adversary), who(adversary._replace(key=jax.random.key(5))))
    with pytest.raises(ValueError, match="^attack: shares 0.7, 0.4 are more than all clients"):
        malice.counts(attacked(FLIP._replace(share=0.7), FLIP._replace(share=0.4)), 10)


@pytest.mark.full
def test_without_members_every_bit_is_the_same():
    method = tiny.averaging(tiny.task(), tiny.work())
    nobody = attacked(*(attack._replace(share=0.02) for attack in MIX))  # of twenty clients
    setting = sync.setting(tiny.task(), method, tiny.population(), tiny.scripted(), mesh.make(1), 1, 8, 4, 100, adversary=nobody)
    assert setting.adversary is None  # the program without the flag
    away = jnp.asarray(np.flatnonzero(~who(attacked(*MIX)))[: tiny.SLOTS], jnp.int32)  # there are some, and none is drawn

    def script(found):
        return jnp.broadcast_to(away, found[0].shape), *found[1:]

    assert same(trained(simulation(*MIX), script=script)[0], trained(simulation(), script=script)[0])
    assert not same(trained(simulation(*MIX))[0], trained(simulation())[0])


@functools.cache
def stack_seen(*attacks):
    return _stack_seen(attacked(*attacks) if attacks else None)


def _stack_seen(adversary):
    """The uploads that a rule is given in the first round, by client."""
    rule = Stacked(lambda stack, weight, cohort: {"stack": stack, "ids": cohort.ids, "weight": weight})
    task = tiny.task()
    method = tiny.averaging(task, tiny.work())._replace(aggregate={"model": rule}, init_server=lambda key, params, census: {
        "model": params, "seen": {"stack": jax.tree.map(lambda x: jnp.zeros((tiny.SLOTS, *x.shape)), params),
                                  "ids": jnp.zeros(tiny.SLOTS, jnp.int32), "weight": jnp.zeros(tiny.SLOTS)}},
        broadcast=lambda server, client, clock: {"model": server["model"]}, deploy=lambda server: server["model"],
        serve=lambda key, server, aggregate, cohort: {**server, "seen": aggregate["model"]}, personal=None)
    sim = sync.build(task, method, tiny.population(), tiny.scripted(), mesh=mesh.make(1), length=1, adversary=adversary)
    seen = trained(sim, (1,))[0]["seen"]
    return {int(i): jax.tree.map(lambda x, at=at: x[at], seen["stack"]) for at, i in enumerate(seen["ids"])}


def test_forging_replaces_members_uploads_and_no_other_bit():
    honest, bad = stack_seen(), stack_seen(FLIP)
    members = who(attacked(FLIP))
    assert honest.keys() == bad.keys() and 0 < members[list(honest)].sum() < len(honest)
    for client, upload in honest.items():
        assert same(bad[client], tree.scale(-3.0, upload) if members[client] else upload)


@pytest.mark.full
def test_poison_is_the_members_own_data_changed():
    """Members train on other labels: as if their examples had them."""
    honest, bad, members = stack_seen(), stack_seen(LABELS), who(attacked(LABELS))
    changed = {client: not same(bad[client], upload) for client, upload in honest.items() if client != tiny.EMPTY}
    assert changed == {client: bool(members[client]) for client in changed} and any(changed.values())
    population = tiny.population()
    y = population.train.examples["y"].copy()
    for client in np.flatnonzero(members):
        y[tiny.rows_of(client)] = tiny.CLASSES - 1 - y[tiny.rows_of(client)]
    relabeled = population._replace(train=population.train._replace(examples={**population.train.examples, "y": y}))
    sim = simulation(LABELS)
    expected = simulation()
    expected = expected._replace(world=expected.world._replace(population=relabeled._replace(manifest={})))
    assert same(trained(sim)[0], trained(expected)[0])


def test_the_idle_do_no_step():
    _, record = trained(simulation(*MIX))
    ids, steps = record.rounds["ids"], record.rounds["steps0"]
    members = np.asarray([*malice.groups(attacked(*MIX), tiny.N, jnp.arange(tiny.N))][2][1])
    assert not steps[members[ids]].any() and steps[~members[ids] & (ids != tiny.EMPTY)].all()


def test_an_attacked_run_goes_on_where_it_was_cut():
    sim = simulation(*MIX)
    assert same(trained(sim, (4,))[0], trained(sim, (1, 3))[0])


def test_honest_training_costs_no_operation_more():
    costs = [simulation(*attacks).costs() for attacks in ((), (LABELS,), MIX)]
    assert costs[0] == costs[1] == costs[2] and costs[0][0].seen > 0


def forging(attack, slots, width=50):
    """Floating-point operations of forging among so many uploads of a cohort, of 20 clients."""
    ids, there = jnp.arange(slots, dtype=jnp.int32), jnp.ones(slots, bool)
    cohort = Cohort(ids, there, ids, ids, tiny.N, jnp.int32(0))
    return sum(ledger.flops(lambda stack: malice.forge(attacked(attack), KEY, stack, there, cohort, None), jnp.ones((slots, width))))


def test_forging_is_the_members_work_and_not_the_cohorts():
    """A member's upload of 50 entries is multiplied once; a cohort twice as large costs nothing more, and twice as many members twice as much."""
    assert [forging(FLIP, 10), forging(FLIP, 20), forging(FLIP._replace(share=0.4), 20)] == [4 * 50, 4 * 50, 8 * 50]
    assert malice.most(FLIP, tiny.N, 3) == 3 and malice.most(FLIP._replace(share=jnp.float32(0.2)), tiny.N, 10) == 10


def test_what_padding_holds_does_not_reach_the_poisoned():
    sim = simulation(LABELS)
    examples = sim.world.population.train.examples
    rotten = {**examples, "x": examples["x"].at[-4:].set(np.nan)}
    population = sim.world.population._replace(train=sim.world.population.train._replace(examples=rotten))
    assert same(trained(sim)[0], trained(sim._replace(world=sim.world._replace(population=population)))[0])


@pytest.mark.full
def test_two_devices_give_the_bits_of_one():
    assert same(trained(simulation(*MIX, devices=2))[0], trained(simulation(*MIX))[0])


def test_attackers_know_the_rule_in_use():
    """They send what it would give for ones: of a sum, how many are heard."""
    total = Stacked(lambda stack, weight, cohort: jax.tree.map(lambda v: v.sum(0), stack))
    curious = Attack(0.2, forge=lambda key, sight: sight.rule(jax.tree.map(jnp.ones_like, sight.stack)))
    honest, members = stack_seen(), who(attacked(curious))
    expected = [sum(np.full_like(x, tiny.SLOTS) if members[client] else x for client, x in zip(honest, leaf, strict=True))
                for leaf in zip(*map(jax.tree.leaves, honest.values()), strict=True)]
    task = tiny.task()
    method = tiny.averaging(task, tiny.work())._replace(aggregate={"model": total}, serve=lambda key, server, aggregate, cohort: aggregate["model"])
    sim = sync.build(task, method, tiny.population(), tiny.scripted(), mesh=mesh.make(1), length=1, adversary=attacked(curious))
    for got, want in zip(jax.tree.leaves(trained(sim, (1,))[0]), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_refusals():
    method = tiny.averaging(tiny.task(), tiny.work())

    def local(key, message, client, data):
        result = method.local(key, message, client, data)
        return result._replace(upload={"other": result.upload["model"]})

    build = functools.partial(sync.build, tiny.task(), population=tiny.population(), participation=tiny.scripted(), mesh=mesh.make(1))
    sim = build(method=method._replace(local=local, serve=lambda key, server, aggregate, cohort: server), adversary=attacked(FLIP))
    with pytest.raises(ValueError, match="^--attack: method 'own' has no field 'model' in its uploads to forge, only other"):
        trained(sim, (1,))


def test_memory_of_a_stack_is_announced_and_too_many_attackers_are_warned_about():
    from experiments import screen
    from fedjax_lab import config, run

    settings = {"task": "digits_logreg", "clients": 10, "cohort": 10, "devices": 1, "chunk": 1}
    with pytest.warns(UserWarning, match="^--attack=sign-flip:0.4: 4 attackers are expected in a cohort of 10; the aggregator is made for 2 at most"):
        prepared = run.prepare(config.make({**settings, "aggregator": "krum:0.2", "attack": "sign-flip:0.4"}))
    assert prepared.simulation.plan["stack_bytes"] == 10 * 650 * 4 and ", uploads of a round 26.0 KB)" in screen.plan(prepared)
    plain = run.prepare(config.make(settings))
    assert plain.simulation.plan["stack_bytes"] == 0 and "uploads" not in screen.plan(plain)
