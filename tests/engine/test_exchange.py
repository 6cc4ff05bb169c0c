"""Phases, wires and rules in the engine, against numpy: clients here upload the mean of their data instead of training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny
from engine.tiny import DIM, EMPTY, SLOTS, N

from fedjax_lab import rules, tree
from fedjax_lab.types import Method, Phase, Result, Stacked, Streaming, Wire

PEOPLE = tiny.population()
SIZE = np.asarray(PEOPLE.train.size)
MEAN = np.stack([PEOPLE.train.examples["x"][tiny.rows_of(i)].mean(0) if SIZE[i] else np.zeros(DIM) for i in range(N)]).astype(
    np.float32
)
RNG = np.random.default_rng(3)
IDS = np.stack([RNG.permutation(N)[:SLOTS] for _ in range(8)])
MASK = RNG.random(IDS.shape) < 0.7
FREE = tiny.FREE


def mean_of(data):
    batch = data.train.whole()
    return jnp.where(batch["mask"][:, None], batch["x"], 0).sum(0) / jnp.maximum(data.size, 1)


def keep_server(key, params, census):
    return {"seen": jnp.zeros(DIM)}


def deployed(server):
    """Something to evaluate, whatever the server holds."""
    return tiny.task().init(jax.random.key(0))


largest = Streaming(
    zero=lambda like, weight: jnp.full(like.shape, -jnp.inf, like.dtype),
    add=lambda acc, value, weight: jnp.where(weight == 0, acc, jnp.maximum(acc, value)),
    merge=jnp.maximum,
    finish=lambda acc: acc,
)


def combine_median(stack, weights, cohort):
    return jnp.nanmedian(jnp.where(cohort.mask[:, None], stack, jnp.nan), 0)


def combine_mean(stack, weights, cohort):
    return jnp.where(weights[:, None] > 0, weights[:, None] * stack, 0).sum(0) / weights.sum()


RULES = {
    "largest": largest,
    "sum": rules.total(),
    "median": Stacked(combine_median),
    "stacked mean": Stacked(combine_mean),
    "stack": Stacked(lambda stack, weights, cohort: jnp.where(weights[:, None] > 0, stack, 0)),
    "weights": Stacked(lambda stack, weights, cohort: weights),
}
FIELDS = ("mean", *RULES)


def surveying() -> Method:
    """Every kind of rule over the same value; the server holds the aggregates and the cohort of the last round."""

    def local(key, message, client, data):
        value = mean_of(data)
        weight = {f: data.size for f in FIELDS} | {"sum": 1.0, "largest": data.size > 0}
        return Result({f: value - 10 if f == "largest" else value for f in FIELDS}, weight, metrics={"big": value.max()})

    def serve(key, server, aggregate, cohort):
        return {**aggregate, "cohort": {k: v for k, v in cohort._asdict().items() if k != "public"}, "mask": cohort.mask}

    def init_server(key, params, census):
        cohort = {k: jnp.zeros(SLOTS, jnp.int32) for k in ("ids", "size", "steps", "staleness", "roster")} | {"mask": jnp.zeros(SLOTS, bool)}
        cohort |= {"clients": jnp.int32(0), "clock": jnp.int32(0), "counts": jnp.zeros((SLOTS, census.classes))}
        stacks = {"stack": jnp.zeros((SLOTS, DIM)), "weights": jnp.zeros(SLOTS)}
        return {f: stacks.get(f, jnp.zeros(DIM)) for f in FIELDS} | {"cohort": cohort, "mask": jnp.zeros(SLOTS, bool)}

    broadcast = lambda server, client, clock: {"model": jnp.zeros(5, jnp.int8)}
    return Method(
        local,
        init_server=init_server,
        broadcast=broadcast,
        serve=serve,
        aggregate=RULES,
        deploy=deployed,
        steps=lambda size: size,
    )


@functools.cache
def survey(devices, chunk):
    allowance = np.where(IDS % 4 == 0, 3, FREE)
    return tiny.run(tiny.build(surveying(), devices=devices, chunk=chunk), (1, 2), script=(IDS, MASK, allowance))


def test_every_rule_equals_numpy():
    state, record = survey(1, 1)
    there = IDS[2][MASK[2]]
    value, size = MEAN[there], SIZE[there].astype(np.float32)[:, None]
    expected = {
        "mean": (size * value).sum(0) / size.sum(),
        "stacked mean": (size * value).sum(0) / size.sum(),
        "sum": value.sum(0),
        "largest": value[size[:, 0] > 0].max(0) - 10,
        "median": np.median(value, 0),
    }
    for name, x in expected.items():
        np.testing.assert_allclose(state.server[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    assert record.rounds["big"][1] == pytest.approx(value.max(1).mean(), rel=1e-5)


def test_stacks_and_the_cohort_are_in_slot_order():
    state, record = survey(1, 1)
    steps = {i: min(SIZE[i], 3 if i % 4 == 0 else FREE) for i in IDS[2][MASK[2]]}
    order = sorted(steps, key=lambda i: (-steps[i], i))
    cohort, n = state.server["cohort"], len(order)
    assert cohort["ids"][:n].tolist() == order and cohort["mask"].tolist() == [i < n for i in range(SLOTS)]
    assert cohort["steps"].tolist() == [steps[i] for i in order] + [0] * (SLOTS - n)
    assert cohort["size"].tolist() == [SIZE[i] for i in order] + [0] * (SLOTS - n)
    assert (cohort["clients"], cohort["clock"]) == (N, 2)
    np.testing.assert_array_equal(cohort["counts"][:n], tiny.population().counts[order])
    assert not cohort["counts"][n:].any()
    np.testing.assert_array_equal(record.rounds["ids"][1][:n], order)
    np.testing.assert_array_equal(state.server["weights"], [*SIZE[order], *[0] * (SLOTS - n)])
    np.testing.assert_allclose(state.server["stack"][:n], MEAN[order], rtol=1e-5, atol=1e-6)
    assert not state.server["stack"][n:].any()


@pytest.mark.parametrize("devices, chunk", [pytest.param(2, 1, marks=pytest.mark.full), (4, 1)])
def test_every_rule_has_the_same_bits_on_any_devices(devices, chunk):
    tiny.same(survey(1, 1), survey(devices, chunk))


def test_every_rule_agrees_for_any_chunk():
    tiny.close(survey(1, 1), survey(1, 4))


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_weights_may_be_trees(devices, chunk):
    """Entries with owners, a leaf with its own weight, and silence."""

    def local(key, message, client, data):
        value = mean_of(data)
        weight = {"model": {"owned": jnp.where(value > 0, data.size, 0), "plain": 1.0, "unheard": 0.0}}
        return Result({"model": {"owned": value, "plain": value, "unheard": value * jnp.nan}}, weight)

    method = Method(
        local,
        init_server=lambda key, params, census: dict.fromkeys(("owned", "plain", "unheard"), jnp.zeros(DIM)),
        serve=lambda key, server, aggregate, cohort: aggregate["model"],
        deploy=deployed,
    )
    state, _ = tiny.run(tiny.build(method, devices=devices, chunk=chunk), (1,), script=(IDS, MASK, FREE))
    value, size = MEAN[IDS[0][MASK[0]]], SIZE[IDS[0][MASK[0]]][:, None]
    owners = np.where(value > 0, size, 0)
    np.testing.assert_allclose(
        state.server["owned"], (owners * value).sum(0) / np.maximum(owners.sum(0), 1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(state.server["plain"], value.mean(0), rtol=1e-5, atol=1e-6)
    assert not state.server["unheard"].any()


halving = Wire(  # sends half of what is due and remembers the rest; its code is 16 bits an entry
    init=lambda field: jax.tree.map(jnp.zeros_like, field),
    encode=lambda key, value, row: ((value + row) / 2, (value + row) / 2),
    decode=lambda code: code,
    bits=lambda code: 16 * code.size,
)
noisy = Wire(
    lambda field: (),
    lambda key, value, row: (jax.random.normal(key, value.shape), ()),
    lambda code: code,
    lambda code: 8 + 8 * jnp.sum(code > 0, dtype=jnp.int32),
)
rounding = Wire(
    lambda field: (),
    lambda key, value, row: (jnp.round(value).astype(jnp.int8), ()),
    lambda code: code.astype(jnp.float32),
    lambda code: 8 * code.size,
)


def wired() -> Method:
    """Sums what arrives; a client keeps the message as it came, and counts what it sent in its row."""

    def local(key, message, client, data):
        value = jnp.round(64 * mean_of(data)) + client["turns"]  # dyadic: sums and halves are exact
        row = {"turns": client["turns"] + 1, "sent": client["sent"] + value, "heard": message["model"]}
        noise = jnp.zeros(DIM)
        return Result({"model": value, "a": noise, "b": noise}, 1.0, row)

    def serve(key, server, aggregate, cohort):
        return {"total": server["total"] + aggregate["model"], "a": aggregate["a"], "b": aggregate["b"]}

    stack = Stacked(lambda stack, weights, cohort: stack)
    return Method(
        local,
        serve=serve,
        deploy=deployed,
        steps=lambda size: 0 * size + 1,
        init_server=lambda key, params, census: {
            "total": jnp.zeros(DIM),
            "a": jnp.zeros((SLOTS, DIM)),
            "b": jnp.zeros((SLOTS, DIM)),
        },
        init_client=lambda key, params, facts: {"turns": 0, "sent": jnp.zeros(DIM), "heard": jnp.zeros(DIM)},
        broadcast=lambda server, client, clock: {"model": server["total"] + 0.3},
        aggregate={"model": rules.total(), "a": stack, "b": stack},
        up={"model": halving, "a": noisy, "b": noisy},
        down={"model": rounding},
    )


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_wires_remember_telescope_and_charge(devices, chunk):
    state, record = tiny.run(tiny.build(wired(), devices=devices, chunk=chunk), (3, 4), script=(IDS, MASK, FREE))
    turns = np.bincount(IDS[:7][MASK[:7]], minlength=N)
    np.testing.assert_array_equal(state.clients["turns"], turns)
    memory = state.wires[0]["model"]
    np.testing.assert_array_equal(
        state.server["total"], (state.clients["sent"] - memory).sum(0)
    )  # sent = due - remembered, exactly
    assert memory[turns > 0].any() and not memory[turns == 0].any()
    assert jax.tree.structure(state.wires) == jax.tree.structure(({"model": 0, "a": (), "b": ()},))
    ids, there = record.rounds["ids"][3], record.rounds["mask"][3]  # round 6
    a, b = state.server["a"][there], state.server["b"][there]
    assert len(np.unique(np.concatenate([a, b]).ravel())) == 2 * DIM * there.sum()  # own randomness for each client and field
    up = 2 * DIM + sum(-(-(8 + 8 * (x > 0).sum(1)) // 8) for x in (a, b))
    np.testing.assert_array_equal(record.rounds["bytes_up"][3], [*up, *[0] * (SLOTS - len(up))])
    np.testing.assert_array_equal(record.rounds["bytes_down"][3], DIM * there)
    heard = state.clients["heard"][ids[there]]
    assert (heard == np.round(heard)).all() and (heard == heard[0]).all() and np.abs(heard).max() > 1


LR = 0.25


def two_phases() -> Method:
    """Phase 1: gradients of 1/2 |x - mean_i|^2 up. Phase 2: a step along the own one, kept, less half of everybody's, sent."""

    def first(key, message, client, data):
        g = message["model"] - mean_of(data)
        return Result(
            {"gradient": g},
            data.size,
            client + 1,
            keep={"g": g, "old": client},
            metrics={"norm": tree.norm(g), "phase": jnp.float32(1)},
        )

    def second(key, message, client, data):
        y = message["model"] - LR * (data.keep["g"] - 0.5 * message["all"])
        return Result(
            {"model": y - message["model"]}, data.size > 0, client + 10 * data.keep["old"], metrics={"phase": jnp.float32(2)}
        )

    phases = (
        Phase(
            first,
            lambda server, client, clock: {"model": server["x"]},
            {},
            {},
            {},
            lambda key, s, agg, cohort: {**s, "g": agg["gradient"]},
        ),
        Phase(
            second,
            lambda server, client, clock: {"model": server["x"], "all": server["g"]},
            {"model": halving},
            {},
            {},
            lambda key, s, agg, cohort: {**s, "x": s["x"] + agg["model"]},
        ),
    )
    return Method(
        init_server=lambda key, params, census: {"x": jnp.ones(DIM), "g": jnp.zeros(DIM)},
        phases=phases,
        deploy=deployed,
        init_client=lambda key, params, facts: jnp.float32(1),
    )


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_two_phases_equal_numpy(devices, chunk):
    state, record = tiny.run(tiny.build(two_phases(), devices=devices, chunk=chunk), (2, 2), script=(IDS, MASK, FREE))
    x, row, memory = np.ones(DIM), np.ones(N), np.zeros((N, DIM))
    for ids in (IDS[t][MASK[t]] for t in range(4)):
        g = x - MEAN[ids]
        everybody = np.average(g, axis=0, weights=SIZE[ids])
        due = -LR * (g - 0.5 * everybody) + memory[ids]
        memory[ids] = due / 2
        norm = np.linalg.norm(g, axis=1).mean()
        x = x + (due / 2)[SIZE[ids] > 0].mean(0)
        row[ids] = row[ids] + 1 + 10 * row[ids]
    np.testing.assert_allclose(state.server["x"], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.clients, row)
    np.testing.assert_allclose(state.wires[1]["model"], memory, rtol=1e-5, atol=1e-6)
    assert record.rounds["norm"][1] == pytest.approx(norm, rel=1e-5) and record.rounds["phase"][1] == 2
    there = record.rounds["mask"][1]
    np.testing.assert_array_equal(record.rounds["bytes_up"][1], there * (4 * DIM + 2 * DIM))
    np.testing.assert_array_equal(record.rounds["bytes_down"][1], there * (4 * DIM + 8 * DIM))


def test_identity_wires_charge_the_parameters_of_everybody_there():
    sim, _ = tiny.base()
    _, record = tiny.run(sim, (1,), script=(IDS, MASK, FREE))
    size = 4 * tree.size(tiny.task().init(jax.random.key(0)))
    for way in ("bytes_up", "bytes_down"):
        assert record.rounds[way].dtype == np.uint32
        np.testing.assert_array_equal(record.rounds[way][0], size * record.rounds["mask"][0])


def test_a_client_without_data_takes_part_and_changes_nothing():
    ids, others = np.arange(SLOTS), np.arange(SLOTS) != EMPTY
    (a, record), (b, _) = (tiny.run(tiny.base()[0], (1,), script=(ids, mask, FREE)) for mask in (True, others))
    tiny.same(a.server, b.server)
    assert record.rounds["finite"][0].all() and a.clients["rounds"][EMPTY] == 1 and b.clients["rounds"][EMPTY] == 0
    assert record.rounds["ids"][0][-1] == EMPTY  # no steps, so last


def test_rows_may_hold_keys_and_negative_zero():
    def local(key, message, client, data):
        return Result({}, 1.0, {"key": jax.random.fold_in(client["key"], 1), "zero": client["zero"]})

    rows = lambda key, params, facts: {"key": key, "zero": jnp.float32(-0.0)}
    method = Method(local, init_client=rows, serve=lambda key, server, aggregate, cohort: server)
    one, four = (tiny.run(tiny.build(method, devices=d), (2,), script=(IDS, MASK, FREE)) for d in (1, 4))
    tiny.same(one, four)
    assert len(np.unique(one[0].clients["key"], axis=0)) == N and np.signbit(one[0].clients["zero"]).all()
