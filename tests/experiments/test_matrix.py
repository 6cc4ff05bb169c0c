"""A matrix of attacks and aggregators: every cell is the run alone, the table is what was found, and an interrupted one goes on."""
from __future__ import annotations

import csv
import pathlib

import pytest

import fedjax_lab
from experiments import matrix, series
from fedjax_lab import blend, many
from fedjax_lab import config as configs

BASE = ("--task=digits_mlp:widths=8", "--partition=iid", "--clients=8", "--cohort=8", "--rounds=3", "--eval_every=3", "--devices=1", "--set=lr=0.2",
        "--set=local_steps=4")
MATRIX = (*BASE, "--attacks=sign-flip,replacement:size=2,gamma=3", "--aggregators=mean,norm-clip+median", "--shares=0,0.25", "--at_once=4")
RUNS = 2 + 2 * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The matrix that the tests share."""
    return tmp_path_factory.mktemp("matrix") / "W"


@pytest.mark.full
def test_it_is_interrupted_and_goes_on(program, folder, monkeypatch):
    real, written = series.write, []

    def write(path, prepared, trained):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, prepared, trained)

    monkeypatch.setattr(series, "write", write)
    with pytest.raises(KeyboardInterrupt):
        program(matrix, *MATRIX, f"--workdir={folder}")
    monkeypatch.setattr(series, "write", real)
    assert len(list((folder / "runs").glob("*/config.json"))) == 4
    status, out, err = program(matrix, *MATRIX, f"--workdir={folder}")
    assert (status, err) == (0, "") and f"4 of {RUNS} runs are there" in out
    assert sorted(p.name for p in folder.iterdir()) == ["matrix.csv", "matrix.md", "matrix.png", "runs"]
    monkeypatch.setattr(many, "each", lambda cells, **more: iter(()) if not cells else pytest.fail("trained again"))
    assert program(matrix, *MATRIX, f"--workdir={folder}")[0] == 0


def lines(folder):
    with open(folder / "matrix.csv") as file:
        return {(line["attack"], float(line["share"]), line["aggregator"]): line for line in csv.DictReader(file)}


@pytest.mark.full
def test_every_cell_is_the_run_alone(program, folder):
    program(matrix, *MATRIX, f"--workdir={folder}")
    found = lines(folder)
    assert len(found) == RUNS and {share for _, share, _ in found} == {0.0, 0.25}
    for attack, share, aggregator in [("sign-flip", 0.25, "mean"), ("replacement:size=2,gamma=3", 0.25, "norm-clip+median")]:
        alone = fedjax_lab.train(task="digits_mlp:widths=8", partition="iid", clients=8, cohort=8, rounds=3, eval_every=3, devices=1,
                                 attack=blend.shared(attack, share) if share else None, aggregator=aggregator, options={"lr": 0.2, "local_steps": 4})
        line, last = found[attack, share, aggregator], alone.history[-1]
        assert float(line["mean"]) == pytest.approx(last["test_accuracy"], abs=2e-3)
        assert float(line["attack_success"] or -1) == pytest.approx(last["attack_success"] if "replacement" in attack else -1, abs=2e-3)


def test_the_table_shows_what_was_found(folder, program):
    _, out, _ = program(matrix, *MATRIX, f"--workdir={folder}")
    found, text = lines(folder), (folder / "matrix.md").read_text()
    assert text in out
    for (attack, share, _), line in found.items():
        row = next(row for row in text.splitlines() if row.startswith(f"| {attack} | {share:g} |"))
        assert f"| {100 * float(line['mean']):.1f}" in row
    assert f"({100 * float(found['replacement:size=2,gamma=3', 0.25, 'mean']['attack_success']):.0f})" in text
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    broken = matrix.Place("ipm", 0.2, "mean", (), float("nan"))
    assert "| broke |" in matrix.markdown("", [broken]) and matrix.comma([broken]).endswith("ipm,0.2,mean,0,,,\n")


def test_flags_of_a_matrix(program, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(series, "train", lambda cells, path, **more: seen.append((cells, more)) or {})
    monkeypatch.setattr(matrix, "places", lambda *_: [])
    monkeypatch.setattr(matrix, "conclude", lambda *_: None)

    def cells(*more):
        status, out, err = program(matrix, *BASE, f"--workdir={tmp_path / str(len(seen))}", *more)
        assert (status, err) == (0, "")
        return [cell.config for cell in seen[-1][0]], out

    found, out = cells("--attacks=alie", "--aggregators=krum", "--shares=0.1,0.3", "--seeds=2")
    assert [(c.attack, c.aggregator, c.seed) for c in found] == [(f"alie:share={s}", "krum", seed) for s in (0.1, 0.3) for seed in (0, 1)]
    assert "warning: krum is made for 2 attackers in a cohort of 8; shares 0.3 are more\n" in out and found[0].options["lr"] == 0.2
    everything, _ = cells()
    assert {c.attack.split(":")[0] for c in everything if c.attack} >= {"sign-flip", "alie", "min-max"}
    assert {c.aggregator for c in everything} >= {"mean", "krum", "median", "rfa"} and {c.attack for c in everything if "share" not in str(c.attack)} == {None}
    assert seen[-1][1] == {"blended": True, "most": matrix.AT_ONCE}


@pytest.mark.parametrize(("flag", "message"), [
    ("--attacks=alei", "error: --attacks=alei: unknown attack 'alei'; valid: "),
    ("--attacks=alie:share=0.2", "error: --attacks=alie:share=0.2: 'alie:share=0.2': the share of attackers is --shares\n"),
    ("--attacks=alie,ipm,alie", "error: --attacks: 'alie' is named twice\n"),
    ("--aggregators=mean,krum+mean", "error: --aggregators=mean,krum+mean: --aggregator=krum+mean: 'krum' aggregates"),
    ("--shares=0.1,2", "error: --shares: '2' is not valid; expected float >= 0 and <= 1\n"),
    ("--metric=test_acc", "error: --metric=test_acc: not in every run; valid: "),
])
def test_refusals(flag, message, program, folder):
    given = MATRIX if flag.startswith("--metric") else BASE
    status, _, err = program(matrix, *given, f"--workdir={folder if given is MATRIX else folder.parent / 'other'}", flag)
    assert status == 2 and err.startswith(message) and err.count("\n") == 1


def test_branches():
    assert blend.parted(blend.shared("min-max:most=3", 0.2)) == ("min-max:most=3", 0.2)
    with pytest.raises(ValueError, match="^--attack=a:share=0.1[+]b: expected one attack with share="):
        blend.parted("a:share=0.1+b")
    cells = [configs.make({"attack": a, "aggregator": r, "seed": s}) for a in ("alie:share=0.1", "ipm:share=0.3") for r in ("krum", "rfa") for s in (0, 1)]
    assert many.groups(cells, (), True) == [list(range(8))] and len(many.groups(cells)) == 4
    assert blend.of(cells) == blend.Blend(("alie", "ipm"), ("krum", "rfa"), 0)


def test_the_recorded_table_shows_that_attacks_bite_and_rules_help():
    """experiments/ATTACKS.csv, of the command in experiments/attacks.flags."""
    with open(pathlib.Path(matrix.__file__).parent / "ATTACKS.csv") as file:
        lines = {(line["attack"], float(line["share"]), line["aggregator"]): line for line in csv.DictReader(file)}
    found = {where: 100 * float(line["mean"] or 0) for where, line in lines.items()}
    aims = {where: 100 * float(line["attack_success"]) for where, line in lines.items() if where[0].startswith("replacement")}
    clean = {rule: value for (attack, _, rule), value in found.items() if attack == "none"}
    attacks, rules = {attack for attack, *_ in found} - {"none"}, set(clean)
    assert all(abs(value - clean["mean"]) <= 3 for value in clean.values()) and len(rules) >= 10
    assert sum(found[attack, 0.2, "mean"] <= clean["mean"] - 20 for attack in attacks) >= 4
    assert all(max(found[attack, share, rule] for rule in rules) >= clean["mean"] - 10 for attack in attacks for share in (0.1, 0.2, 0.3))
    triggers = {attack for attack, *_ in aims}
    assert len(triggers) == 2 and all(aims[trigger, share, "mean"] >= 90 for trigger in triggers for share in (0.1, 0.2, 0.3))
    assert all(any(aims[trigger, share, rule] <= 10 and found[trigger, share, rule] >= clean["mean"] - 10 for rule in rules)
               for trigger in triggers for share in (0.1, 0.2, 0.3))
