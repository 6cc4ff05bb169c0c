"""A comparison trains all methods on the same clients, models and cohorts, tunes them alike, and says what it did."""
from __future__ import annotations

import csv
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from experiments import compare
from fedjax_lab import many, resume, run, workdir
from fedjax_lab.metrics import comparison

ROOT = pathlib.Path(__file__).parents[2]
BASE = ("--task=digits_logreg", "--clients=6", "--cohort=3", "--rounds=4", "--eval_every=2", "--devices=2", "--set=batch_size=full", "--seeds=3")


def table(path):
    with open(path / "table.csv") as file:
        return {line["name"]: {k: v if k == "name" else float(v) if v else None for k, v in line.items()} for line in csv.DictReader(file)}


def test_same_clients_same_models_same_cohorts(program, tmp_path):
    path = tmp_path / "W"
    status, out, err = program(compare, *BASE, "--methods=fedavg,fedprox", "--set=fedprox.mu=0", f"--workdir={path}")
    assert (status, err) == (0, "") and out.count("3 of 3 runs") == 2
    runs = {p.name: workdir.history(p) for p in (path / "runs").iterdir()}
    assert sorted(runs) == [f"{name}-seed{seed}" for name in ("fedavg", "fedprox") for seed in range(3)]
    for seed in range(3):  # without its proximal term FedProx is FedAvg, if all else is equal
        for a, b in zip(runs[f"fedavg-seed{seed}"], runs[f"fedprox-seed{seed}"], strict=True):
            assert {**a, "seconds": 0, "flops": 0} == pytest.approx({**b, "seconds": 0, "flops": 0}, rel=1e-5)  # its term is computed all the same
    assert len({(path / "runs" / name / "partition.json").read_text() for name in runs}) == 1
    assert resume.read_config(path / "runs" / "fedprox-seed2")["config"]["options"] == {"mu": 0.0, "batch_size": "full"}
    found, text = table(path), (path / "table.md").read_text()
    assert found["fedprox"]["difference"] == pytest.approx(0, abs=1e-6) and found["fedprox"]["broken"] == 0
    assert text in out and "over 3 seeds" in text and "last minus last of fedavg" in text and "| fedprox |" in text
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in path.iterdir()) == ["curves.png", "runs", "table.csv", "table.md"]  # as of a sweep


@pytest.fixture
def imagined(monkeypatch):
    """Nothing is trained: a run's accuracy is what `imagined` says of its configuration. Gives the configurations asked for."""
    asked = []

    def accuracy(config):
        best = {"fedavg": 0.1, "fedprox": 0.5, "scaffold": 0.2}[config.method]
        return 0.8 - abs(math.log10(config.options.get("lr", 0.1) / best)) / 10 + (config.seed % 7) / 100

    def each(cells, *, at_once, report, blended):
        prepared = run.prepare(cells[0]) if cells else None
        for at, config in enumerate(cells):
            asked.append(config)
            rows = [{"round": r, "seconds": r / 10, "test_accuracy": accuracy(config) * r / 4, "test_loss": 1.0, "bytes_up": 1000 * r, "bytes_down": r}
                    for r in (0, 2, 4)]
            broken = "round 1: not finite" if config.options.get("lr", 0) > 100 else ""
            yield at, prepared._replace(config=config), many.Trained(config, [] if broken else rows, broken)

    monkeypatch.setattr(many, "each", each)
    return asked


def test_tuning_takes_other_seeds_and_the_same_budget(program, imagined, tmp_path):
    path = tmp_path / "W"
    argv = (*BASE, "--methods=fedavg,fedprox", "--tune=lr=0.01,0.1,0.5,1000", "--tune=fedprox.mu=0.1,1", "--tune_seeds=2", f"--workdir={path}")
    assert program(compare, *argv)[::2] == (0, "")
    tuned, reported = [c for c in imagined if c.seed >= 10**6], [c for c in imagined if c.seed < 10**6]
    for name in ("fedavg", "fedprox"):
        assert len([c for c in tuned if c.method == name]) == 8 and {c.seed for c in tuned if c.method == name} == {10**6, 10**6 + 1}
        assert {c.seed for c in reported if c.method == name} == {0, 1, 2}
    rates = {c.options["lr"] for c in tuned if c.method == "fedprox" and c.options["lr"] < 100}
    nearest = min(rates, key=lambda lr: abs(math.log10(lr / 0.5)))
    assert {c.options["lr"] for c in reported if c.method == "fedavg"} == {0.1} and {c.options["lr"] for c in reported if c.method == "fedprox"} == {nearest}
    text = (path / "table.md").read_text()
    assert "same budget: 4 trials of 2 seeds, from 1000000 on, none of them reported" in text and "fedavg, lr=0.1" in text
    asked = len(imagined)
    assert program(compare, *argv)[0] == 0 and len(imagined) == asked  # all of it was there
    status, _, err = program(compare, *argv[:-1], "--trials=5", f"--workdir={path}")
    assert status == 2 and "--trials=5" in err and "grid of fedavg has 4" in err
    program(compare, *argv[:-1], "--trials=1", f"--workdir={tmp_path / 'other'}")
    assert [c.method for c in imagined[asked:] if c.seed >= 10**6] == ["fedavg"] * 2 + ["fedprox"] * 2


@pytest.mark.full
def test_flags_of_a_comparison(program, imagined, tmp_path):
    def call(*more):
        assert program(compare, *BASE, "--methods=fedavg,scaffold", f"--workdir={tmp_path / 'W'}", *more)[:3:2] == (0, "")
        return table(tmp_path / "W")

    first = call()
    expected = comparison.table({name: {s: workdir.history(tmp_path / "W" / "runs" / f"{name}-seed{s}") for s in range(3)} for name in first},
                                "test_accuracy", "fedavg", first["fedavg"]["last_mean"])
    assert [line["difference"] for line in expected] == [None, pytest.approx(first["scaffold"]["difference"])]
    assert call("--baseline=scaffold")["fedavg"]["difference"] == pytest.approx(-first["scaffold"]["difference"])
    assert [call(f"--target={target}")["fedavg"]["rounds_to_target"] for target in (0.1, 0.6)] == [2, 4]
    assert call("--metric=test_loss")["fedavg"]["last_mean"] == 1
    count = len(imagined)
    assert call("--seeds=4")["fedavg"]["runs"] == 4 and len(imagined) == count + 2
    assert {c.seed for c in imagined[-2:]} == {3}
    assert call("--seed=2", "--seeds=2")["fedavg"]["runs"] == 2 and len(imagined) == count + 2


REFUSED = {
    "no methods": ((), "--methods", "experiments.train --list"),
    "method": (("--methods=fedavg,scafold",), "unknown method 'scafold'", "did you mean 'scaffold'"),
    "twice": (("--methods=fedavg,fedavg",), "'fedavg' is named twice"),
    "baseline": (("--methods=fedavg", "--baseline=scaffold"), "unknown baseline 'scaffold'", "fedavg"),
    "option": (("--methods=fedavg,fedprox", "--set=mu=1"), "'fedavg' has no option 'mu'"),
    "no option": (("--methods=fedavg", "--set=fedavg.lrr=1"), "--set=fedavg.lrr", "did you mean 'lr'"),
    "value": (("--methods=fedavg", "--set=lr=x"), "'lr'", "'x'"),
    "owner": (("--methods=fedavg", "--set=fedprox.mu=1"), "unknown method of --set=fedprox.mu: 'fedprox'", "fedavg"),
    "tuned": (("--methods=fedavg", "--tune=mu=1"), "--tune=mu", "no such option of fedavg"),
    "tuned value": (("--methods=fedavg", "--tune=lr=0.1,x"), "'lr'", "'x'"),
    "tune seeds": (("--methods=fedavg", "--tune_seeds=0"), "--tune_seeds", ">= 1"),
    "trials": (("--methods=fedavg", "--trials=2"), "--trials=2", "has 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(program, tmp_path, case):
    argv, *words = REFUSED[case]
    status, _, err = program(compare, *BASE, f"--workdir={tmp_path / 'W'}", *argv)
    assert status == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    assert not (tmp_path / "W").exists()


def test_every_trial_breaks_off(program, imagined, tmp_path):
    argv = (*BASE, "--methods=fedavg,scaffold", "--tune=fedavg.lr=1000", "--tune=scaffold.lr=0.1", f"--workdir={tmp_path / 'W'}")
    status, out, err = program(compare, *argv)
    assert status == 2 and "every trial of fedavg broke off" in err and "not finite" in out
    status, _, err = program(compare, *BASE, "--methods=fedavg", "--set=lr=1000", f"--workdir={tmp_path / 'V'}")
    assert status == 2 and "every run broke off" in err


def test_help():
    text = subprocess.run([sys.executable, "-m", "experiments.compare", "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120).stdout
    names = ("methods", "baseline", "set", "tune", "trials", "tune_seeds", "seeds", "metric", "target", "workdir", "seed", "cohort")
    assert all(f"--{name}:" in text for name in names) and "--method:" not in text


def rows(values, metric="test_accuracy", **more):
    return [{"round": 10 * i, "seconds": float(i), metric: v, "bytes_up": 100 * i, "bytes_down": i, **more} for i, v in enumerate(values)]


def test_table_of_known_runs():
    results = {"a": {0: rows([0, 0.5, 0.4]), 1: rows([0, 0.7, 0.8]), 2: rows([0, 0.6, 0.9])},
               "b": {0: rows([0, 0.6, 0.7]), 1: [], 2: rows([0, 0.2, 0.5])}}
    a, b = comparison.table(results, "test_accuracy", "a", 0.65)
    assert (a["last_mean"], a["best_mean"]) == pytest.approx((0.7, (0.5 + 0.8 + 0.9) / 3)) and a["last_std"] == pytest.approx(np.std([0.4, 0.8, 0.9], ddof=1))
    assert (a["rounds_to_target"], a["bytes_to_target"], a["reached"]) == (20, 202, 2)
    assert (b["runs"], b["broken"], b["reached"], b["seconds"]) == (3, 1, 1, 2) and math.isinf(b["rounds_to_target"])
    low, high = stats.ttest_rel([0.7, 0.5], [0.4, 0.9]).confidence_interval(0.95)
    assert (b["difference"], b["difference_low"], b["difference_high"]) == pytest.approx((-0.05, low, high))
    text = comparison.markdown([a, b])
    assert "3, 1 broke off" in text and "never" in text and "-0.0500 (" in text and len({len(line) for line in text.splitlines()}) == 1


def test_ledgers_are_columns_where_a_run_has_them():
    clocked = [{**row, "time": 2.5 * i, "uploads": 4 * i, "rejected": i} for i, row in enumerate(rows([0, 0.5, 0.8]))]
    private = [{**row, "epsilon": e, "privacy": "epsilon at delta=1e-05 by RDP, all clients"} for e, row in zip((0, 1.25, 2.75), rows([0, 0.2, 0.3]), strict=True)]
    bare = [{**row, "epsilon": math.inf, "privacy": "epsilon is infinite: no noise"} for row in rows([0, 0.1])]
    apart = [{**row, "consensus_distance": 0.125} for row in rows([0, 0.6])]
    results = {"plain": {0: rows([0, 0.4, 0.9])}, "clocked": {0: clocked, 1: clocked}, "private": {0: private}, "bare": {0: bare}, "apart": {0: apart}}
    lines = comparison.table(results, "test_accuracy", "plain", 0.45)
    found = {line["name"]: line for line in lines}
    assert [found["clocked"][k] for k in ("time", "uploads", "rejected", "time_to_target")] == [5.0, 8, 2, 2.5]
    assert all(math.isnan(found["plain"][k]) for k in (*comparison.LEDGER, "time_to_target")) and found["plain"]["privacy"] == ""
    assert (found["private"]["epsilon"], found["bare"]["epsilon"], found["apart"]["consensus_distance"]) == (2.75, math.inf, 0.125)
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in comparison.markdown(lines).splitlines()]
    shown = {line[0]: dict(zip(head, line, strict=True)) for line in body}
    columns = ("time to target", "virtual time", "uploads", "rejected", "consensus distance", "epsilon")
    assert [shown["clocked"][c] for c in columns] == ["2.5", "5", "8", "2", "-", "-"] and [shown["plain"][c] for c in columns] == ["-"] * 6
    assert [shown[name]["epsilon"] for name in ("private", "bare")] == ["2.75", "infinite"] and shown["apart"]["consensus distance"] == "0.125"
    text = comparison.legend("test_accuracy", "plain", 0.45, lines)
    assert "- private: epsilon at delta=1e-05 by RDP, all clients\n- bare: epsilon is infinite: no noise" in text and "law of delays" in text
    written = {line["name"]: line for line in csv.DictReader(comparison.csv(lines).splitlines())}
    assert written["private"]["privacy"] == "epsilon at delta=1e-05 by RDP, all clients" and float(written["bare"]["epsilon"]) == math.inf
    assert written["clocked"]["rejected"] == "2.0" and written["plain"]["time"] == "" and list(written["plain"]) == list(lines[0])
    honest = comparison.table({"plain": results["plain"]}, "test_accuracy", "plain", 0.45)
    assert "virtual" not in comparison.markdown(honest) + comparison.legend("test_accuracy", "plain", 0.45, honest).lower()


def test_less_of_a_loss_is_better():
    results = {"a": {0: rows([3, 1, 2], "test_loss")}, "b": {0: rows([3, 2, 1.5], "test_loss")}}
    a, b = comparison.table(results, "test_loss", "a", 1.6)
    assert (a["best_mean"], a["rounds_to_target"], b["best_mean"], b["rounds_to_target"]) == (1, 10, 1.5, 20)
    assert comparison.score([results["a"][0]], "test_loss") == -2 and comparison.score([[], results["a"][0]], "test_loss") == -math.inf
    assert (b["difference"], b["difference_low"]) == (-0.5, None) and "-0.5000 " in comparison.markdown([a, b])


def test_a_difference_that_leaves_out_zero_is_bold():
    results = {"a": {s: rows([0.1]) for s in range(3)}, "b": {s: rows([0.2 + s / 1000]) for s in range(3)}}
    assert "**+0.1010 (" in comparison.markdown(comparison.table(results, "test_accuracy", "a", 1.0))


def test_bands_and_axes(tmp_path):
    runs = [rows([0.1, 0.3, 0.5], time=5.0), rows([0.3, 0.3], time=7.0)]
    assert comparison.band(runs, "round", "test_accuracy") == pytest.approx(np.array([[0, 0.2, 0.1], [10, 0.3, 0]]))
    assert comparison.band(runs, "megabytes", "test_accuracy")[:, 0] == pytest.approx([0, 101 / 1e6])
    assert comparison.band(runs, "time", "test_accuracy")[:, 0] == pytest.approx([6, 6])
    sizes = []
    for number, more in enumerate(({}, {"time": 1.0})):
        file = tmp_path / f"{number}.png"
        comparison.draw({"a": {0: rows([0.1, 0.2], **more)}, "broken": {0: []}}, "test_accuracy", file)
        sizes.append(int.from_bytes(file.read_bytes()[16:20], "big"))
    assert sizes[1] > 1.3 * sizes[0]  # a panel more
