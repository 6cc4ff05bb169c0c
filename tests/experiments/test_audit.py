"""What experiments.audit finds is what is there: true gradients are inverted, defended ones are not, and members are found where a model overfits."""
from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import audit
from fedjax_lab import config as configs
from fedjax_lab import run

BASE = ("--task=digits_logreg", "--partition=iid", "--clients=12", "--cohort=4", "--devices=1")
GEIPING = "--attack=geiping:iterations=200,restarts=1"


@pytest.fixture
def audited(program, tmp_path):
    """Runs the program; gives the rows of its table, its text and its folder."""

    def call(*argv, base=BASE):
        path = tmp_path / f"audit{len(list(tmp_path.glob('audit*')))}"
        status, out, err = program(audit, *base, f"--workdir={path}", *argv)
        assert (status, err) == (0, ""), err
        assert sorted(p.name for p in path.iterdir()) == ["audit.json", "audit.md", "audit.png"]
        assert (path / "audit.png").read_bytes().startswith(b"\x89PNG") and (path / "audit.md").read_text() in out
        return json.loads((path / "audit.json").read_text())["rows"], out, path

    return call


def test_uploads_leak_unless_they_are_defended(audited):
    rows, out, _ = audited(GEIPING, "--victims=3")
    assert [row["client"] for row in rows] == [0, 1, 2, "mean"] and rows[-1]["psnr"] > 25 and rows[-1]["labels_right"] == 1
    assert "of the first model" in out and rows[-1]["mse"] == pytest.approx(np.mean([row["mse"] for row in rows[:3]]))
    noisy, _, _ = audited(GEIPING, "--victims=3", "--wire_up=awgn:1e-2")
    assert noisy[-1]["psnr"] < rows[-1]["psnr"] - 8


@pytest.mark.full
def test_masked_uploads_show_nothing(audited):
    rows, _, _ = audited(GEIPING, "--victims=3", "--privacy=secagg")
    assert rows[-1]["psnr"] < 12 and rows[-1]["labels_right"] < 1


@pytest.mark.full
def test_examples_of_a_batch_after_some_rounds(audited):
    rows, out, path = audited("--attack=geiping:iterations=600,restarts=2", "--examples=2", "--victims=1", "--rounds=2", "--set=batch_size=full", "--set=epochs=3")
    assert "2 examples each, after the run" in out and "| given |" in (path / "audit.md").read_text()
    assert rows[0]["labels_right"] is None and rows[0]["psnr"] > 15


def test_what_is_observed_is_a_step_of_gradient_descent():
    config = configs.make({"task": "digits_logreg", "clients": 12, "cohort": 4, "devices": 1, "options": {"lr": 0.3, "batch_size": "full"}})
    prepared = run.prepare(config)
    state = prepared.simulation.init(prepared.simulation.world, jax.random.key(0))
    ids, target = audit.victim(prepared, state, 2, 3)
    seen = audit.observe(prepared, state, 0, ids, 2)
    assert (target.steps, target.lr, target.shape, target.classes) == (1, 0.3, (2, 8, 8, 1), 10)
    for i in range(3):
        rows = prepared.population.train.rows(ids[i], np.arange(2))
        x = prepared.population.train.examples["x"][rows]
        np.testing.assert_array_equal(seen["x"][i], x)
        batch = {"x": x, "y": prepared.population.train.examples["y"][rows], "mask": jnp.ones(2, bool)}
        grad = jax.grad(lambda p, batch=batch: prepared.task.loss(p, batch, None)[0])(state.server)
        jax.tree.map(lambda u, g, i=i: np.testing.assert_allclose(u[i], -0.3 * g, atol=1e-6), seen["change"], grad)


def test_guesses_are_matched_to_the_examples_that_they_are_closest_to():
    x = np.random.default_rng(0).random((5, 4, 4, 1))
    order = [3, 0, 4, 1, 2]
    assert audit.matched(x[order], x + 0.01).tolist() == order
    assert audit.psnr(x, x + 0.1, 1.0) == pytest.approx(20) and audit.psnr(x, x + 0.1, 10.0) == pytest.approx(40)


def test_members_of_a_model_that_does_not_overfit_are_not_found(audited):
    rows, _, _ = audited("--attack=loss-threshold", "--rounds=2", "--eval_every=2", "--cohort=12")
    (row,) = rows
    assert row["members"] + row["others"] == 1442 and abs(row["members"] - row["others"]) <= 12
    assert abs(row["auc"] - 0.5) < 4 * (1 / 12 * (1 / row["members"] + 1 / row["others"])) ** 0.5 and abs(row["accuracy_of_members"] - row["accuracy_of_others"]) < 0.06


OVERFIT = ("--task=digits_mlp", "--partition=subset:300+iid+concept:2", "--clients=6", "--cohort=6", "--rounds=60", "--eval_every=60", "--devices=1",
           "--set=lr=0.3", "--set=epochs=3")


@pytest.mark.full
def test_members_of_a_model_that_overfits_are_found(audited):
    ((row,), _, _) = audited("--attack=loss-threshold", base=OVERFIT)
    assert row["auc"] > 0.7 and row["accuracy_of_members"] > row["accuracy_of_others"] + 0.2


@pytest.mark.full
def test_shadow_models(audited):
    ((row,), out, _) = audited("--attack=lira:shadows=4", base=OVERFIT)
    assert "run 5 of 5" in out and row["auc"] > 0.7


@pytest.mark.parametrize(("more", "message"), [
    (("--attack=dgl",), "unknown audit 'dgl'; valid: dlg, geiping, idlg, lira, loss-threshold; did you mean 'dlg'?"),
    (("--attack=geiping:tv=-1",), "option 'tv' of 'geiping': '-1' is not valid; expected float >= 0"),
    (("--examples=20",), "--examples=20: with batch_size=10 the server does not know who is in which step; choose --set=batch_size=full"),
    (("--victims=13",), "--victims=13: 12 clients have 1 examples; choose at most 12"),
    (("--method=mime",), "--method=mime: it has several exchanges in a round, and one upload is inverted"),
    (("--attack=lira", "--population=host"), "--population=host: membership needs the examples on the device; leave it out"),
    (("--attack=idlg", "--examples=2"), "'idlg' reads off the label of one example; there are 2; choose dlg or geiping"),
])
def test_refusals(more, message, program, tmp_path):
    assert program(audit, *BASE, f"--workdir={tmp_path / 'W'}", *more)[::2] == (2, f"error: {message}\n")
