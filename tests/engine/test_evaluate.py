"""Evaluation against a recomputation in numpy, from the parameters and rows that the run ended with."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from engine import tiny
from engine.tiny import N

from fedjax_lab.engine import evaluate
from fedjax_lab.types import Stream

PEOPLE = tiny.population()
TEST = PEOPLE.test


def own_rows(client):
    return np.asarray(TEST.index)[TEST.offset[client] : TEST.offset[client] + TEST.size[client]]


def values_of(params, rows):
    """{metric: [rows]} by hand."""
    x, y = TEST.examples["x"][rows], TEST.examples["y"][rows]
    logits = np.tanh(x @ params["body"]["kernel"] + params["body"]["bias"]) @ params["head"]["kernel"]
    loss = np.log(np.exp(logits).sum(1)) - np.take_along_axis(logits, y[:, None], 1)[:, 0]
    return {"loss": loss, "accuracy": (logits.argmax(1) == y).astype(float)}


def spread_of(values, worst="low"):
    v = np.sort(values) if worst == "low" else np.sort(values)[::-1]
    spread = {"mean": v.mean(), "worst_decile": v[: max(1, -(-len(v) // 10))].mean(), "std": v.std()}
    return spread | {f"q{q}": np.quantile(values, q / 100, method="nearest") for q in range(0, 101, 10)}


def expected(state, looked_at):
    central = values_of(state.server, np.arange(100))
    report = {f"test_{k}": v.mean() for k, v in central.items()}
    for prefix, model in (
        ("", lambda i: state.server),
        ("personal_", lambda i: jax.tree.map(lambda x: x[i], state.clients["model"])),
    ):
        each = np.array([values_of(model(i), own_rows(i))["accuracy"].mean() for i in looked_at])
        report |= {f"{prefix}client_test_accuracy_{k}": v for k, v in spread_of(each).items()}
    return report


@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_the_report_equals_numpy(devices, chunk):
    state, record = tiny.run(tiny.base(devices, chunk)[0], (3, 1))
    report = expected(state, [i for i in range(N) if TEST.size[i]])
    means = {k: v for k, v in report.items() if "_q" not in k}  # which are distinct; quantiles are accuracies of single clients
    assert set(report) == set(record.evaluation) and len(set(means.values())) == len(means)
    for name, value in report.items():
        assert record.evaluation[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_some_clients_only():
    sim = tiny.build(eval_clients=6, eval_batch=64)
    state, record = tiny.run(sim, (2,))
    looked_at = np.asarray(sim.world.panel.ids).tolist()
    assert len(looked_at) == 6 and looked_at[0] == 0 and looked_at[-1] == N - 1 and 5 not in looked_at
    for name, value in expected(state, looked_at).items():
        assert record.evaluation[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_panel_holds_every_client_with_test_examples():
    panel = evaluate.panel(PEOPLE, None)
    assert panel.ids.tolist() == [i for i in range(N) if TEST.size[i]]
    for i, rows in zip(panel.ids, panel.rows, strict=True):
        assert rows[rows >= 0].tolist() == own_rows(i).tolist()
    plain = evaluate.panel(PEOPLE._replace(test=Stream(TEST.examples, TEST.offset, TEST.size)), 4)
    assert [r[r >= 0].tolist() for r in plain.rows] == [
        list(range(TEST.offset[i], TEST.offset[i] + TEST.size[i])) for i in plain.ids
    ]
    for limit in (1, 19, 20, 10**6):
        ids = evaluate.panel(PEOPLE, limit).ids
        assert len(set(ids.tolist())) == min(limit, 19)


@pytest.mark.parametrize("clients", [1, 9, 10, 11, 25])
def test_the_worst_tenth(clients):
    v = np.random.default_rng(0).random(clients).astype(np.float32)
    for name, worst in (("accuracy", "low"), ("loss", "high")):
        report = evaluate.spread({name: jax.numpy.asarray(v)}, "p_")
        assert {k: float(x) for k, x in report.items()} == pytest.approx(
            {f"p_client_test_{name}_{k}": x for k, x in spread_of(v, worst).items()}
        )


def test_a_population_without_client_tests_has_no_client_report():
    bare = PEOPLE._replace(test=TEST._replace(size=np.zeros(N, np.int32)))
    _, record = tiny.run(tiny.build(people=bare), (1,))
    assert set(record.evaluation) == {"test_loss", "test_accuracy"} and np.isfinite(list(record.evaluation.values())).all()
