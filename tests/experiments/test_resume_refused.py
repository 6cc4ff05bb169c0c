"""A folder that holds something else than the run to go on with is left alone, and the line says why."""
from __future__ import annotations

import pytest
from interruption import contents, edited, go, outcome, stopped

import fedjax_lab
from fedjax_lab import workdir

REFUSED = {  # settings of the second start, and what the line says
    "another seed": ({"seed": 1}, "seed: 0 -> 1"),
    "two": ({"seed": 1, "lanes": 16}, "seed: 0 -> 1; lanes: 8 -> 16"),
    "fewer rounds": ({"rounds": 6}, "rounds: 7 -> 6, can only be raised"),
    "other rows": ({"eval_every": 2}, "eval_every: 3 -> 2"),
    "option": ({"options": {"lr": 0.5}}, "set lr: default -> 0.5"),
    "no restart": ({"mode": "never"}, "already holds checkpoint; nothing is overwritten"),
    "mode": ({"mode": "maybe"}, "--resume: 'maybe' is not valid; expected one of auto, never, must"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(prepared, whole, tmp_path, case):
    settings, words = REFUSED[case]
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        go(tmp_path, prepared, **settings)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_refused_for_want_of_a_run(prepared, tmp_path):
    with pytest.raises(ValueError, match="--resume=must: .* holds no run"):
        go(tmp_path / "new", prepared, mode="must")
    assert not (tmp_path / "new").exists()
    go(tmp_path / "new", prepared, mode="never")


@pytest.mark.parametrize("change, words", [
    (lambda p: edited(p, versions={"fedjax_lab": "99.1"}), "config.json is by fedjax_lab 99.1, this is 0"),
    (lambda p: edited(p, config={"warp": 9}), "has settings unknown here (warp)"),
    (lambda p: (p / "config.json").write_text("{"), "config.json is not that of a run, or damaged"),
    (lambda p: (p / "config.json").write_text('{"name": "other"}'), "config.json is not that of a run, or damaged"),
])
def test_refused_config(prepared, tmp_path, change, words):
    stopped(tmp_path, prepared, 3)
    change(tmp_path)
    before = contents(tmp_path)
    for act in (lambda: go(tmp_path, prepared), lambda: fedjax_lab.load(str(tmp_path))):
        with pytest.raises(ValueError) as error:
            act()
        assert words in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_another_jax_is_named(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 3)
    edited(tmp_path, versions={"jax": "0.1"})
    with pytest.warns(UserWarning, match="begun with jax 0.1"):
        go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_refused_data(prepared, tmp_path):
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)
    facts = {**prepared.population.manifest, "sha256_partition": "0123"}
    other = prepared._replace(population=prepared.population._replace(manifest=facts))
    with pytest.raises(ValueError, match="run on other data .sha256_partition: .* -> 0123"):
        go(tmp_path, other)
    assert contents(tmp_path) == before


def test_another_process_is_kept_out(prepared, tmp_path):
    with workdir.WorkDir(str(tmp_path), prepared), pytest.raises(ValueError, match="another process is writing there"):
        go(tmp_path, prepared)
    go(tmp_path, prepared)
