"""Exchanges with everyone, exchanges of some rounds only, and what a client keeps between them, against a numpy loop."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import FOR_USERS, ahead
from engine import tiny
from engine.test_exchange import FREE, IDS, MASK, MEAN, SIZE, deployed, halving, mean_of
from engine.tiny import DIM, SLOTS, N

from fedjax_lab import rules
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts.cohorts.dropout import dropout
from fedjax_lab.types import Method, Phase, Result, Wire

LR, ROUNDS = 0.25, 8
counting = Wire(  # a byte for each positive entry
    lambda field: (), lambda key, value, row: (value, ()), lambda code: code, lambda code: 8 * jnp.sum(code > 0, dtype=jnp.int32)
)


def heads(key, clock):
    return jax.random.bernoulli(key)


def tails(key, clock):
    return ~heads(key, clock)


def send(*names):
    return lambda server, client, clock: {name: server[name] for name in names}


def put(**names):
    """A server that holds these aggregates under these names."""
    return lambda key, server, aggregate, cohort: {**server, **{name: aggregate[field] for name, field in names.items()}}


def five_phases() -> Method:
    """Cohort, everyone on heads, everyone on tails, cohort, everyone on tails again; every phase leaves its mark in the client's row."""

    def gradient(key, message, row, data):
        g = message["x"] - mean_of(data)
        return Result({"gradient": g}, data.size, {**row, "turns": row["turns"] + 1}, {"g": g, "before": row["turns"]}, {"who": jnp.float32(1)})

    def ask(key, message, row, data):
        row = {**row, "heads": row["heads"] + row["turns"], "there": data.present}
        return Result({"mean": mean_of(data) + message["g"], "there": data.present.astype(jnp.float32)}, 1.0, row, (), {"who": jnp.float32(2)})

    def mark(key, message, row, data):
        own = mean_of(data)
        return Result({"mean": own}, 1.0, {**row, "tails": row["tails"] + 1}, {"own": own, "turns": row["turns"]})

    def step(key, message, row, data):
        change = -LR * (data.keep["g"] - 0.01 * message["asked"])
        return Result({"x": change}, 1.0, {**row, "turns": row["turns"] + 10 * data.keep["before"]})

    def echo(key, message, row, data):
        return Result({"mean": data.keep["own"] * data.keep["turns"]}, 1.0, {**row, "echo": row["turns"] - data.keep["turns"]})

    def move(key, server, aggregate, cohort):
        return {**server, "x": server["x"] + aggregate["x"]}

    total = rules.total()
    phases = (
        Phase(gradient, send("x"), {}, {}, {}, put(g="gradient")),
        Phase(ask, send("g"), {"mean": halving}, {}, {"mean": total, "there": total}, put(asked="mean", there="there"), True, heads),
        Phase(mark, send("g"), {"mean": counting}, {}, {"mean": total}, put(marked="mean"), True, tails),
        Phase(step, send("x", "asked"), {"x": halving}, {}, {}, move),
        Phase(echo, send(), {}, {}, {"mean": total}, put(echoed="mean"), True, tails),
    )

    def init_server(key, params, census):
        return dict.fromkeys(("g", "asked", "marked", "echoed"), jnp.zeros(DIM)) | {"x": jnp.ones(DIM), "there": jnp.float32(0)}

    def init_client(key, params, facts):
        return dict.fromkeys(("turns", "heads", "tails", "echo"), jnp.float32(0)) | {"there": False}

    return Method(init_server=init_server, init_client=init_client, phases=phases, deploy=deployed)


def numpy_loop(coins):
    """The same on numpy, given on which rounds the coin shows heads: (server, rows, memories of phases 1 and 3)."""
    server = dict.fromkeys(("g", "asked", "marked", "echoed"), np.zeros(DIM)) | {"x": np.ones(DIM), "there": 0}
    row = {name: np.zeros(N) for name in ("turns", "heads", "tails", "echo", "there")}
    memory = np.zeros((2, N, DIM))
    for t, coin in enumerate(coins):
        ids = IDS[t][MASK[t]]
        g, before = server["x"] - MEAN[ids], row["turns"][ids].copy()
        server["g"] = np.average(g, axis=0, weights=SIZE[ids])
        row["turns"][ids] += 1
        if coin:
            row["heads"] += row["turns"]
            row["there"] = np.isin(np.arange(N), ids)
            memory[0] = (MEAN + server["g"] + memory[0]) / 2
            server |= {"asked": memory[0].sum(0), "there": len(ids)}
        else:
            row["tails"] += 1
            turns = row["turns"].copy()
            server["marked"] = MEAN.sum(0)
        memory[1][ids] = (-LR * (g - 0.01 * server["asked"]) + memory[1][ids]) / 2
        server["x"] = server["x"] + memory[1][ids].mean(0)
        row["turns"][ids] += 10 * before
        if not coin:
            row["echo"] = row["turns"] - turns
            server["echoed"] = (MEAN * turns[:, None]).sum(0)
    return server, row, memory


@functools.cache
def program(devices, chunk):
    return ahead(tiny.build(five_phases(), devices=devices, chunk=chunk, length=ROUNDS, eval_clients=1), options=FOR_USERS)


@functools.cache
def run(devices, chunk):
    return tiny.run(program(devices, chunk), (ROUNDS,), script=(IDS, MASK, FREE))


def coins(record):
    """On which rounds the coin showed heads: the exchange on heads overwrites a metric."""
    return record.rounds["who"] == 2


@pytest.mark.parametrize("devices, chunk", [pytest.param(1, 1, marks=pytest.mark.full), (2, 3)])
def test_five_phases_equal_numpy(devices, chunk):
    state, record = run(devices, chunk)
    seen = coins(record)
    assert 0 < seen.sum() < ROUNDS
    server, row, memory = numpy_loop(seen)
    for name, value in server.items():
        np.testing.assert_allclose(state.server[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, value in row.items():
        np.testing.assert_array_equal(state.clients[name], value, err_msg=name)
    for phase, expected in ((1, memory[0]), (3, memory[1])):
        field, = state.wires[phase].values()
        np.testing.assert_allclose(field, expected, rtol=1e-5, atol=1e-6)


def test_the_bits_are_the_same_on_any_devices_and_in_any_segments():
    tiny.same(run(1, 1), run(2, 1))
    tiny.same(run(1, 1)[0], tiny.run(program(1, 1), (3, ROUNDS - 3), script=(IDS, MASK, FREE))[0])


def test_any_chunk_agrees():
    tiny.close(run(1, 1), run(2, 3), rel=1e-5)


def test_bytes_are_told_by_slot_for_the_cohort_and_by_id_for_everyone():
    _, record = run(1, 1)
    rounds, seen, full = record.rounds, coins(record)[:, None], 4 * DIM
    np.testing.assert_array_equal(rounds["bytes_up"], rounds["mask"] * (full + 2 * DIM))
    np.testing.assert_array_equal(rounds["bytes_down"], rounds["mask"] * (full + 2 * full))
    positive = (np.stack([MEAN] * ROUNDS) > 0).sum(2)
    np.testing.assert_array_equal(rounds["all_bytes_up"], np.where(seen, 2 * DIM + 4, positive + full))
    np.testing.assert_array_equal(rounds["all_bytes_down"], np.full((ROUNDS, N), full))
    assert positive.max() > positive.min() and rounds["all_bytes_up"].dtype == np.uint32
    assert rounds["finite"].all() and rounds["all_finite"].all()


def test_who_broke_is_told_by_id_where_a_phase_took_place():
    sim, seven = program(1, 1), np.arange(N) == 7
    poison = np.asarray(sim.world.population.train.examples["x"]).copy()
    poison[tiny.rows_of(7)] = np.nan
    script = (IDS, MASK & (IDS != 7), FREE)  # client 7 is in no cohort, but among everyone
    _, record = tiny.run(sim, (1,), script=script, world=tiny.with_train(sim.world, x=poison))
    assert not coins(record)[0]  # tails: nothing that everyone sent reaches the cohort
    np.testing.assert_array_equal(record.rounds["all_finite"][0], ~seven)
    assert record.rounds["finite"][0].all()


def taught(*phases) -> Method:
    """Everybody's mean is sent and added; a row counts its client's exchanges. One phase for each of these changes."""

    def local(key, message, row, data):
        return Result({"model": mean_of(data) - message["model"]}, data.size, row + 1)

    def serve(key, x, aggregate, cohort):
        return x + 0.5 * aggregate["model"]

    method = Method(local, init_server=lambda key, params, census: jnp.ones(DIM), init_client=lambda key, params, facts: jnp.int32(0), serve=serve,
                    deploy=deployed)
    return method._replace(phases=tuple(method.phase(**changes) for changes in phases))


@pytest.mark.parametrize("everyone", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_phase_that_does_not_take_place_changes_no_bit(everyone):
    double = {"serve": lambda key, x, aggregate, cohort: 2 * x, "everyone": everyone, "when": lambda key, clock: clock == 2}
    with_it, without = (ahead(tiny.build(taught(*phases), length=4, eval_clients=1)) for phases in (({}, double), ({},)))
    for rounds in (2, 3):
        (plain, _), (state, record) = tiny.run(without, (rounds,)), tiny.run(with_it, (rounds,))
        np.testing.assert_array_equal(state.server, plain.server * (2 if rounds == 3 else 1))
        twice = (np.ones(N, int) if everyone else np.isin(np.arange(N), record.rounds["ids"][2])) * (rounds == 3)
        np.testing.assert_array_equal(state.clients, plain.clients + twice)
    uploads = record.rounds["all_bytes_up" if everyone else "bytes_up"].sum(1)[:3] // (4 * DIM)
    np.testing.assert_array_equal(uploads, [0, 0, N] if everyone else [SLOTS, SLOTS, 2 * SLOTS])


def test_who_is_lost_on_the_way_is_not_present():
    there = {"everyone": True, "local": lambda key, message, row, data: Result({"model": message["model"]}, 1.0, row + data.present)}
    participation = dropout(tiny.scripted(), rate=(1.0, 0.0))  # clients of even number are lost
    sim = ahead(sync.build(tiny.task(), taught(there), tiny.population(), participation, mesh=mesh.make(1), length=4, eval_clients=1))
    state, _ = tiny.run(sim, (4,), script=(IDS, MASK, FREE))
    drawn = sum(np.isin(np.arange(N), IDS[t][MASK[t]]).astype(int) for t in range(4))
    assert drawn[::2].any()
    np.testing.assert_array_equal(state.clients, drawn * (np.arange(N) % 2))
