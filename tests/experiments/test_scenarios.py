"""The scenarios run, say how, and reached what they say."""
from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from absl import flags
from test_train import ROOT

import fedjax_lab
from experiments import scenarios, screen, train

REAL = os.environ.get("FEDJAX_LAB_DATA")
EMBEDDED = ("digits_mlp", "synthetic_logreg")
LOADED = ("adult_mlp", "cifar10_gncnn", "cora_gcn", "ml_latest_small_mf", "mnist_2nn", "mnist_cnn", "shakespeare_roles_charlstm",
          "shakespeare_roles_transformer", "sst2_sentences_transformer")
MEASURED = (r"# Measured on \d+ CPU cores \(jax [\d.]+\): (\d+) rounds, data and compilation included, in (\d+) s \((\d+) s of CPU time\); "
            r"(test_accuracy|test_loss) ([\d.]+) -> ([\d.]+)")


def text(name):
    return (scenarios.FOLDER / f"{name}.flags").read_text()


def measured(name):
    rounds, seconds, cpu, metric, before, after = re.search(MEASURED, text(name)).groups()
    return scenarios.Result(float(seconds), float(cpu), metric, float(before), float(after), int(rounds))


def test_all_are_here():
    assert scenarios.names() == sorted([*EMBEDDED, *LOADED])


@pytest.mark.parametrize("name", [*EMBEDDED, *LOADED])
def test_a_file_says_its_command_and_what_it_reached(name, monkeypatch):
    comment = [line for line in text(name).splitlines() if line.startswith("#")]
    assert comment[2] == f"#   python -m experiments.train --flagfile=experiments/scenarios/{name}.flags" + " --data_dir=DATA" * (name not in EMBEDDED)
    assert comment[-1].startswith(scenarios.MARK) and len(comment) == 5 and all(len(line) <= 160 for line in comment)
    values = flags.FlagValues()
    for module in (flags, train):
        monkeypatch.setattr(module, "FLAGS", values)
    train.define()
    screen.parse_flags(["train", f"--flagfile={scenarios.FOLDER / name}.flags"])
    config, found = train.read(), measured(name)
    assert config.method == "fedavg" and config.rounds == found.rounds == 20
    assert config.task.partition(":")[0] == name and found.better and found.cpu_seconds / 2 < 180


def predicts(done):
    """Whether the model that the run left behind answers."""
    example = json.loads((done.path / "config.json").read_text())["example"]
    outputs = fedjax_lab.load(str(done.path)).predict(**{k: np.zeros((2, *shape), dtype) for k, (dtype, *shape) in example.items()})
    return len(outputs) == 2 and np.isfinite(outputs).all()


@pytest.mark.parametrize("name", ["digits_mlp", pytest.param("synthetic_logreg", marks=pytest.mark.full)])
def test_an_embedded_scenario_reaches_its_number(name, job):
    done, found = job(f"--flagfile={scenarios.FOLDER / name}.flags", base=()), measured(name)
    assert done.status == 0, done.err
    assert done.rows[0][found.metric] == pytest.approx(found.before, abs=1e-3)
    assert done.rows[-1][found.metric] == pytest.approx(found.after, abs=0.03)  # another processor rounds otherwise
    assert predicts(done)


@pytest.mark.full
def test_the_program_measures_and_writes(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.flags").write_text("# A try.\n--task=digits_logreg\n--cohort=5\n--rounds=2\n--eval_every=1\n")
    (tmp_path / "wrong.flags").write_text("# Cannot run.\n--task=digits_logreg\n--cohort=1000\n")
    monkeypatch.setattr(scenarios, "FOLDER", tmp_path)
    monkeypatch.setattr(scenarios.subprocess, "run", _elsewhere(scenarios.subprocess.run))
    assert scenarios.main(["tiny"]) == 0
    found = re.search(MEASURED, (tmp_path / "tiny.flags").read_text())
    assert found and found[1] == "2" and float(found[3]) > 0 and float(found[6]) > float(found[5])
    assert capsys.readouterr().out.startswith("tiny: Measured on")
    assert scenarios.main(["wrong"]) == 1 and "wrong: --cohort=1000: more than the 100 clients" in capsys.readouterr().err
    assert scenarios.MARK not in (tmp_path / "wrong.flags").read_text()


@pytest.mark.parametrize("metric, before, after, status", [("test_accuracy", 0.1, 0.2, 0), ("test_accuracy", 0.2, 0.2, 1), ("test_loss", 2, 1, 0),
                                                           ("test_loss", 1, 2, 1)])
def test_a_scenario_that_does_not_learn_is_not_written_down(metric, before, after, status, tmp_path, monkeypatch, capsys):
    (tmp_path / "some.flags").write_text("# Some.\n--rounds=3\n")
    monkeypatch.setattr(scenarios, "FOLDER", tmp_path)
    monkeypatch.setattr(scenarios, "run", lambda name, flags: scenarios.Result(1, 2, metric, before, after, 3))
    assert scenarios.main(["all"]) == status
    assert (scenarios.MARK in (tmp_path / "some.flags").read_text()) == (status == 0)
    assert (f"{metric} is no better than before training" in capsys.readouterr().err) == (status == 1)


def _elsewhere(run):
    """The package lies in the checkout, wherever the flag files of a test lie."""
    return lambda command, **more: run(command, **{**more, "cwd": ROOT})


def test_the_measured_line_is_replaced_and_nothing_else():
    before = text("digits_mlp")
    again = scenarios.record(before, f"{scenarios.MARK} now")
    assert again.count(scenarios.MARK) == 1 and scenarios.record(again, f"{scenarios.MARK} now") == again
    rest = lambda t: [line for line in t.splitlines() if not line.startswith(scenarios.MARK)]
    assert rest(again) == rest(before) and scenarios.record(again, re.search(MEASURED, before)[0]) == before


def test_data_dir_is_handed_on(tmp_path, monkeypatch):
    handed = []
    (tmp_path / "some.flags").write_text("# Some.\n")
    monkeypatch.setattr(scenarios, "FOLDER", tmp_path)
    monkeypatch.setattr(scenarios, "run", lambda name, flags: handed.append(flags) or scenarios.Result(1, 2, "test_loss", 2, 1, 3))
    monkeypatch.chdir(tmp_path)
    assert scenarios.main(["some"]) == scenarios.main(["some", "--data_dir=sets"]) == 0
    assert handed == [[], [f"--data_dir={tmp_path / 'sets'}"]]


def test_list_and_refusals(capsys):
    assert scenarios.main(["--list"]) == 0
    assert all(f"{name}\n  " in capsys.readouterr().out for name in [scenarios.names()[0]])
    for argument, says in [(["digits"], "unknown scenario 'digits'; valid: .*did you mean 'digits_mlp'"), ([], "no scenario is named; valid: adult_mlp")]:
        assert scenarios.main(argument) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and re.search(says, err)


if REAL:
    @pytest.fixture(scope="session")
    def cache(tmp_path_factory):
        """Decoded sets and compiled programs of this session."""
        return tmp_path_factory.mktemp("sets")

    @pytest.mark.full
    @pytest.mark.parametrize("name", LOADED)
    def test_a_round_of_a_real_scenario(name, process, cache):
        done = process(f"--flagfile={scenarios.FOLDER / name}.flags", f"--data_dir={REAL}", f"--cache_dir={cache}", "--rounds=2", "--eval_every=2",
                      "--eval_clients=4", base=())
        assert done.status == 0, done.err
        assert [row["round"] for row in done.rows] == [0, 2]
        assert done.rows[1]["test_loss"] < done.rows[0]["test_loss"] and predicts(done)
        found = measured(name)
        assert done.rows[0][found.metric] == pytest.approx(found.before, abs=2e-3)
