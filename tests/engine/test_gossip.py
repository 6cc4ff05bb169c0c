"""Rounds without a server: what they are on graphs where that is known, and what must not matter."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny
from engine.tiny import EMPTY, N

from fedjax_lab import rules, tree
from fedjax_lab.engine import evaluate, gossip, mesh, sync
from fedjax_lab.parts.attacks.colluding import ipm
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.mixing import graphs
from fedjax_lab.parts.mixing import links as lists
from fedjax_lab.types import Adversary, Draw, Method, Participation, Result, Stacked

TASK = tiny.task()
GRAPHS = {"ring": graphs.ring, "full": graphs.full, "random": functools.partial(graphs.random, degree=3),
          "directed": functools.partial(graphs.erdos, p=0.4, directed=True), "alone": lambda nodes, seed: alone()}
SOLO = np.arange(N) % 3 > 0  # who is active in `some`


def fedavg(aggregate=None, weight=None) -> Method:
    """Full batches, rows that count the rounds taken part in; clients weigh as many examples as they have, or as told."""
    local = tiny.averaging(TASK, tiny.work(batch_size="full")).local

    def counted(key, message, client, data):
        result = local(key, message, client, data)
        return result if weight is None else result._replace(weight=weight * (data.size > 0))

    method = tiny.averaging(TASK, tiny.work(batch_size="full"))
    return method._replace(local=counted, personal=None, aggregate=aggregate or {})


def still() -> Method:
    """Nothing is trained."""
    def local(key, message, client, data):
        return Result({"model": tree.zeros_like(message["model"])}, 1.0, metrics={"loss": jnp.float32(0)})

    return Method(local)


@functools.cache
def busy() -> Participation:
    """All that have examples."""
    seats = uniform(N, N)
    return seats._replace(draw=lambda key, state, clock: (d := seats.draw(key, state, clock))._replace(mask=d.ids != EMPTY, heard=d.ids != EMPTY))


@functools.cache
def some() -> Participation:
    """Two thirds of the nodes, every time; of these, node 4 is not heard."""
    ids = jnp.asarray(np.flatnonzero(SOLO), jnp.int32)

    def draw(key, state, clock):
        whole = jnp.ones(ids.shape, bool)
        return Draw(state, ids, whole, ids != 4, jnp.full(ids.shape, tiny.FREE, jnp.int32))

    return Participation(int(SOLO.sum()), lambda key, census: (), draw)


def build(method, graph="ring", participation=None, devices=1, chunk=5, length=3, **mixing):
    topology = GRAPHS[graph](N, 0) if isinstance(graph, str) else graph
    seats = gossip.seating(participation or uniform(N, N), N)
    return sync.build(TASK, method, tiny.population(), seats, mesh=mesh.make(devices), chunk=chunk, length=length, eval_batch=50,
                      schedule=gossip.schedule(topology, **mixing))


def run(sim, rounds=(3,), change=lambda state: state, world=None):
    """(State, last Record) on the host, after segments of so many rounds."""
    world = world or sim.world
    state, clock = change(sim.init(sim.world, jax.random.key(1))), 0
    segment = sim.segment.lower(world, state, jnp.int32(0), jnp.int32(1)).compile()
    for count in rounds:
        state, record = segment(world, state, jnp.int32(clock), jnp.int32(count))
        clock += count
    return tiny.host(state), tiny.host(record)


@functools.cache
def reference(weight=None):
    """Synchronous rounds with everybody."""
    method = fedavg(weight=weight)
    return run(sync.build(TASK, method, tiny.population(), uniform(N, N), mesh=mesh.make(1), chunk=5, length=3, eval_batch=50))


@functools.cache
def program(graph="ring", weight=1.0, active=None, **mixing):
    """(simulation, compiled segment) of FedAvg."""
    sim = build(fedavg(weight=weight), graph, active, **mixing)
    state = sim.init(sim.world, jax.random.key(1))
    return sim, sim.segment.lower(sim.world, state, jnp.int32(0), jnp.int32(1)).compile()


def ran(*args, rounds=3, **more):
    sim, segment = program(*args, **more)
    return tiny.host(segment(sim.world, sim.init(sim.world, jax.random.key(1)), jnp.int32(0), jnp.int32(rounds)))


def alone():
    """W = I."""
    return lists.fixed("alone", lists.listed([[] for _ in range(N)]))


@pytest.mark.parametrize("weight", [pytest.param(None, marks=pytest.mark.full), 1.0])
def test_a_full_graph_is_fedavg_with_everybody(weight):
    state, record = ran("full", weight)
    expected, expected_record = reference(weight)
    for node in (0, EMPTY, N - 1):
        jax.tree.map(lambda x, y, node=node: np.testing.assert_allclose(x[node], y, rtol=0, atol=1e-6), state.server.server, expected.server)
    tiny.close(state.clients, expected.clients, rel=2e-6)
    for name, value in expected_record.evaluation.items():
        assert record.evaluation[name] == pytest.approx(value, abs=1e-5), name
    assert record.evaluation["consensus_distance"] < 1e-12


@pytest.mark.full
@pytest.mark.parametrize("order", ["after", "beside"])
def test_the_mean_moves_by_the_mean_change(order):
    """In the first round, from equal models, it is FedAvg's, whatever the graph."""
    state, own = ran(order=order, active=busy(), rounds=1)[0], ran("alone", rounds=1)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x.mean(0), y.mean(0), atol=1e-6), state.server.server, own.server.server)
    mixed = np.abs(state.server.server["head"]["kernel"] - own.server.server["head"]["kernel"]).max()
    assert mixed < 1e-6 if order == "beside" else mixed > 1e-3  # equal models mix to what they are
    assert np.abs(ran(order=order, active=busy())[0].server.server["head"]["kernel"] - ran("alone")[0].server.server["head"]["kernel"]).max() > 1e-3


def test_without_links_nodes_are_isolated():
    (sim, segment), sick, (state, record) = program("alone"), 7, ran("alone")
    x = np.array(sim.world.population.train.examples["x"])
    x[tiny.rows_of(sick)] = np.nan
    other, _ = tiny.host(segment(tiny.with_train(sim.world, x=x), sim.init(sim.world, jax.random.key(1)), jnp.int32(0), jnp.int32(3)))
    for mine, theirs in zip(*map(jax.tree.leaves, (state.server.server, other.server.server)), strict=True):
        np.testing.assert_array_equal(np.delete(mine, sick, 0), np.delete(theirs, sick, 0))
    assert not record.rounds["bytes_up"].any() and record.evaluation["consensus_distance"] > 1e-3


@pytest.mark.full
def test_several_steps_are_one_with_the_power_of_w():
    w = np.linalg.matrix_power(lists.dense(graphs.ring(N, 0).arrays), 3)
    power = lists.fixed("power", lists.listed([[(j, w[i, j]) for j in range(N) if j != i and w[i, j]] for i in range(N)]))
    three, one = ran(steps=3), run(build(fedavg(weight=1.0), power))
    tiny.close(three[0].server, one[0].server, rel=1e-5)
    assert three[1].evaluation["consensus_distance"] < 0.6 * ran()[1].evaluation["consensus_distance"]
    assert three[1].rounds["bytes_up"][0].tolist() == [3 * 2 * bytes_of(three[0])] * N


def bytes_of(state) -> int:
    return sum(x[0].nbytes for x in jax.tree.leaves(state.server.server))


@pytest.mark.full
def test_chunk_and_devices_change_nothing():
    state, record = ran()
    for devices, chunk in ((1, 1), (4, 2)):
        other, other_record = ran(devices=devices, chunk=chunk)
        tiny.close((state.server, state.clients), (other.server, other.clients), rel=2e-6)
        tiny.close(record.evaluation, other_record.evaluation, rel=1e-5)
        np.testing.assert_array_equal(record.rounds["bytes_up"], other_record.rounds["bytes_up"])


def test_segments_may_be_cut_anywhere_in_a_changing_graph():
    (sim, segment), (whole, _) = program("random"), ran("random")
    state, clock = sim.init(sim.world, jax.random.key(1)), 0
    for count in (1, 0, 2):
        state, _ = segment(sim.world, state, jnp.int32(clock), jnp.int32(count))
        clock += count
    tiny.same(whole, tiny.host(state))
    assert np.abs(whole.server.server["head"]["kernel"] - ran()[0].server.server["head"]["kernel"]).max() > 1e-3


def test_who_is_not_active_keeps_everything_and_is_not_heard():
    (sim, segment), rest = program(active=some()), ~SOLO | (np.arange(N) == 4)
    state, record = ran(active=some())
    first = tiny.host(sim.init(sim.world, jax.random.key(1)))
    for now, before in zip(*map(jax.tree.leaves, ((state.server, state.clients), (first.server, first.clients))), strict=True):
        np.testing.assert_array_equal(now[rest], before[rest])
    x = np.array(sim.world.population.train.examples["x"])
    for client in np.flatnonzero(rest):
        x[tiny.rows_of(client)] = np.nan
    other, _ = tiny.host(segment(tiny.with_train(sim.world, x=x), sim.init(sim.world, jax.random.key(1)), jnp.int32(0), jnp.int32(3)))
    tiny.same((state.server, state.clients), (other.server, other.clients))
    sent = dict(zip(record.rounds["ids"][0].tolist(), record.rounds["bytes_up"][0].tolist(), strict=True))
    there = (~rest).astype(int)
    assert sent == {i: there[i] * (there[i - 1] + there[(i + 1) % N]) * bytes_of(state) for i in range(N)}
    assert record.rounds["mask"][0].sum() == SOLO.sum() and record.rounds["heard"][0].sum() == SOLO.sum() - 1


def scattered(state):
    """Nodes that start apart."""
    rng = np.random.default_rng(0)
    apart = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.server.server)
    return state._replace(server=state.server._replace(server=apart))


def test_push_sum_finds_the_mean_on_a_directed_graph():
    sim = build(still(), "directed", length=30)
    start = scattered(sim.init(sim.world, jax.random.key(1))).server.server
    state, record = run(sim, (30,), scattered)
    assert state.server.mass.sum() == pytest.approx(N, rel=1e-5) and state.server.mass.std() > 0.1
    jax.tree.map(lambda x, s: np.testing.assert_allclose(x, np.broadcast_to(np.mean(s, 0), x.shape), atol=1e-4), state.server.server, start)
    assert record.evaluation["consensus_distance"] < 1e-6


@pytest.mark.full
def test_push_sum_keeps_the_mean_among_the_active():
    sim = build(still(), "directed", some(), length=30)
    start = scattered(sim.init(sim.world, jax.random.key(1))).server.server
    part, _ = run(sim, (30,), scattered)
    before = jax.tree.map(lambda s: np.mean(s, 0), start)
    kept = jax.tree.map(lambda x: np.einsum("i,i...->...", part.server.mass, x) / N, part.server.server)
    tiny.close(kept, jax.tree.map(np.asarray, before), rel=1e-4)


def test_consensus_distance_own_models_and_the_average():
    state, record = ran()
    models, test = state.server.server, tiny.population().test
    mean = jax.tree.map(lambda x: x.mean(0), models)
    apart = sum(((x - m) ** 2).sum() for x, m in zip(*map(jax.tree.leaves, (models, mean)), strict=True)) / N
    assert record.evaluation["consensus_distance"] == pytest.approx(apart, rel=1e-4)
    accuracy = {i: np.mean(logits(models, i, (data := own(test, i))["x"]).argmax(1) == data["y"]) for i in evaluate.panel(tiny.population(), None).ids}
    assert record.evaluation["personal_client_test_accuracy_mean"] == pytest.approx(np.mean([*accuracy.values()]), abs=1e-6)
    assert record.evaluation["personal_client_test_accuracy_q0"] == pytest.approx(min(accuracy.values()), abs=1e-6)
    z = logits(jax.tree.map(lambda x: x[None], mean), 0, test.examples["x"])
    central = np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), test.examples["y"]])
    assert record.evaluation["test_loss"] == pytest.approx(central, rel=1e-5)
    deployed = program()[0].deploy(jax.tree.map(jnp.asarray, state._replace(key=())))
    jax.tree.map(lambda x, m: np.testing.assert_allclose(x, m, atol=1e-6), deployed, mean)


def own(stream, i):
    rows = stream.index[stream.offset[i] : stream.offset[i] + stream.size[i]]
    return {k: v[rows] for k, v in stream.examples.items()}


def logits(models, i, x):
    """Of the tiny task's perceptron, by hand."""
    body, head = models["body"], models["head"]
    return np.tanh(x @ body["kernel"][i] + body["bias"][i]) @ head["kernel"][i]


def first_upload() -> Stacked:
    """Only the own upload counts."""
    return Stacked(lambda stack, weights, cohort: jax.tree.map(lambda x: x[0], stack))


def averaged() -> Stacked:
    def combine(stack, weights, cohort):
        return jax.tree.map(lambda x: jnp.einsum("i,i...->...", weights, jnp.where(jnp.isnan(x), 9e9, x)) / weights.sum(), stack)

    return Stacked(combine)


@pytest.mark.full
@pytest.mark.parametrize("rule, graph, active", [(rules.mean, "ring", some), (averaged, "ring", None), (first_upload, "alone", some)])
def test_other_rules_see_the_neighborhood(rule, graph, active):
    state, _ = run(build(fedavg({"model": rule()}, weight=1.0), participation=active and active()), (2,))
    expected, _ = ran(graph, active=active and active(), rounds=2)
    tiny.close(state.server.server, expected.server.server, rel=2e-6)


@pytest.mark.full
def test_a_total_counts_everybody_on_a_full_graph():
    state, _ = run(build(fedavg({"model": rules.total()}, weight=0.05), "full"), (1,))
    expected, _ = ran("full", rounds=1)  # 19 nodes with examples
    first = tiny.host(program("full")[0].init(program("full")[0].world, jax.random.key(1))).server.server
    changes = (jax.tree.map(np.subtract, s.server.server, first) for s in (state, expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 0.05 * (N - 1) * y, atol=1e-6), *changes)


def test_what_gossip_cannot_be():
    method = fedavg()
    everyone = method._replace(phases=(method.phase(everyone=True),))
    wired = method._replace(down={"model": rules.identity()})
    cases = [(everyone, {}, "asks all clients at once"), (wired, {}, "wire on the way down"),
             (fedavg({"model": rules.mean()}), {"steps": 2}, "own rule for 'model'"), (fedavg({"model": rules.mean()}), {"order": "beside"}, "own rule"),
             (method, {"graph": graphs.ring(6, 0)}, "graph 'ring': has 6 nodes for 20 clients"),
             (Method(lambda key, message, client, data: Result({"model": message["model"]["head"]}, 1.0)), {}, "no change of the one it gets")]
    for odd, how, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            sim = build(odd, **how)
            sim.segment.lower(sim.world, sim.init(sim.world, jax.random.key(0)), jnp.int32(0), jnp.int32(1))
        assert "\n" not in str(error.value)


@pytest.mark.full
def test_forged_uploads_on_a_full_graph_are_those_of_a_server():
    """Where all start alike, what attackers see and send is the same, and so is what becomes of it."""
    adversary = Adversary((ipm(0.2, scale=2.0),), jax.random.key(3))
    method, people = fedavg(weight=1.0), tiny.population()
    how = {"mesh": mesh.make(1), "chunk": 5, "length": 2, "eval_batch": 50, "adversary": adversary}
    one, _ = run(sync.build(TASK, method, people, uniform(N, N), **how), (2,))
    all_, record = run(sync.build(TASK, method, people, gossip.seating(uniform(N, N), N), schedule=gossip.schedule(graphs.full(N, 0)), **how), (2,))
    honest, _ = ran("full", rounds=2)
    for x, y, z in zip(*map(jax.tree.leaves, (all_.server.server, one.server, honest.server.server)), strict=True):
        np.testing.assert_allclose(x[1], y, atol=1e-6)
    assert np.abs(x - z).max() > 1e-3 and record.rounds["sound"].all()
