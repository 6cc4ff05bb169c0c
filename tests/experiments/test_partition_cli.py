"""experiments.partition: what it writes, prints and refuses."""
from __future__ import annotations

import json
import subprocess
import sys
import types

import matplotlib.image
import numpy as np
import pytest
from absl import flags
from test_train import ROOT, refused, write_ratings

from experiments import partition, screen
from fedjax_lab import config as configs
from fedjax_lab.data import known, sources

SMALL = ("--source=digits", "--clients=8")


@pytest.fixture
def show(monkeypatch, capsys, tmp_path):
    """Calls experiments.partition in this process with flags of its own."""

    def call(*argv: str, base: tuple[str, ...] = SMALL) -> types.SimpleNamespace:
        path, values = tmp_path / f"shown{len(list(tmp_path.glob('shown*')))}", flags.FlagValues()
        for module in (flags, partition):
            monkeypatch.setattr(module, "FLAGS", values)
        partition.define()
        capsys.readouterr()
        try:
            status = partition.main(screen.parse_flags(["partition", f"--workdir={path}", *base, *argv]))
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return types.SimpleNamespace(status=status, out=out, err=err, path=path)

    monkeypatch.delenv("FEDJAX_LAB_DATA", raising=False)
    return call


def facts(done, name="partition"):
    return json.loads((done.path / f"{name}.json").read_text())


def test_files_and_what_is_printed(show):
    done = show("--partition=dirichlet:0.3")
    assert done.status == 0, done.err
    assert sorted(p.name for p in done.path.iterdir()) == ["partition.json", "partition.png"]
    text, last, _ = done.out.rpartition(f"{done.path}: ")
    assert text == (done.path / "partition.json").read_text() and last
    assert matplotlib.image.imread(done.path / "partition.png").std() > 0.1
    assert (facts(done)["clients"], facts(done)["examples"], facts(done)["partition"]) == (8, 1442, "dirichlet:0.3")


@pytest.mark.full
def test_a_run_stores_the_same_manifest_and_picture(show, job):
    more = ("--partition=longtail:10+dirichlet:0.3+rotation:2", "--client_test=0.3", "--data_seed=5")
    shown, run = show(*more), job(*more, "--rounds=1")
    assert (shown.status, run.status) == (0, 0), run.err
    for name in ("partition.json", "partition.png"):
        assert (shown.path / name).read_bytes() == (run.path / name).read_bytes()


@pytest.mark.full
def test_the_task_names_the_source_too(show):
    assert facts(show(base=("--task=digits_mlp:widths=4",))) == facts(show(base=("--source=digits",))) == facts(show(base=()))
    assert facts(show(base=("--source=synthetic:2,beta=0,clients=5",)))["clients"] == 5


def test_every_flag_of_the_partition_counts(show, tmp_path):
    np.savez(tmp_path / "who.npz", idx=np.arange(40).reshape(4, 10))
    changes = {"partition": "iid", "clients": "9", "client_test": "0.3", "data_seed": "1"}
    found = [facts(show()), *(facts(show(f"--{name}={value}")) for name, value in changes.items()),
             facts(show(f"--partition_file={tmp_path / 'who.npz'}", base=("--source=digits",)))]
    assert len({f["sha256_partition"] for f in found}) == len(found) and found[-1]["clients"] == 4
    known = {field.name for field in configs.fields()}
    assert set(partition.CONFIG) < known and {*changes, "partition_file"} < set(partition.CONFIG)


def test_data_come_from_the_folder(show, tmp_path, monkeypatch):
    monkeypatch.delitem(known.FACTS, "ml_latest_small")
    natural = ("--source=ml_latest_small", "--partition=natural")
    assert facts(show(f"--data_dir={write_ratings(tmp_path)}", base=natural))["clients"] == 6
    refused(show(base=natural), "--data_dir")
    asked, load = [], sources.load
    monkeypatch.setattr(sources, "load", lambda *words: asked.append(words) or load(*words))
    assert show("--data_dir=sets", "--cache_dir=kept").status == 0 and asked == [("digits", "sets", "kept")]


def test_a_sequence_has_a_pair_of_files_for_each_task(show):
    done = show("--partition=iid+class_incremental:3")
    assert sorted(p.name for p in done.path.iterdir()) == sorted(f"partition-{t}.{end}" for t in range(3) for end in ("json", "png"))
    found = [facts(done, f"partition-{t}") for t in range(3)]
    assert sorted(c for f in found for c in f["classes_of_task"]) == list(range(10))
    np.testing.assert_array_equal(np.sum([f["label_totals"] for f in found], 0), facts(show())["label_totals"])
    assert done.out.count('"sha256_partition"') == 3


def test_parties_are_shown_too(show):
    done = show("--partition=subset:200+vertical:4,overlap=0.1,shared=2", base=("--source=digits",))
    found = facts(done)
    assert (found["parties"], found["features"], found["aligned"], sum(found["private"])) == (4, 64, 20, 180)
    assert sum(found["columns"]) == 64 + 3 * 2 and (done.path / "partition.png").stat().st_size > 1000


def test_a_source_with_clients_of_its_own(show):
    done = show(base=("--source=crowd:50,size=3",))
    assert (done.status, facts(done)["clients"]) == (0, 50), done.err
    refused(show("--partition=iid", base=("--source=crowd:50",)), "--partition=iid", "its own clients")


@pytest.mark.parametrize("argument, words", [
    ("--sourc=digits", ("unknown flag --sourc", "did you mean 'source'")),
    ("digits", ("unexpected argument 'digits'",)),
    ("--rounds=3", ("unknown flag --rounds",)),
    ("--task=digits_mlp", ("--source=digits", "choose one")),
    ("--source=digit", ("'digit' not found", "did you mean 'digits'")),
    ("--partition=dirichle", ("unknown partition 'dirichle'", "did you mean 'dirichlet'")),
    ("--partition=iid+rotaton", ("did you mean 'rotation'",)),
    ("--partition=vertical+rotation", ("makes no parties",)),
    ("--partition=iid+class_incremental:11", ("tasks=11", "10 classes")),
    ("--clients=2000", ("clients=2000", "1442 examples")),
    ("--clients=0", ("--clients", "'0'", "int >= 1")),
    ("--client_test=2", ("--client_test", "'2'")),
    ("--data_seed=-1", ("--data_seed", "'-1'")),
    ("--partition_file=missing.npz", ("'missing.npz' not found",)),
])
def test_refused(show, argument, words):
    done = show(argument)
    refused(done, *words)
    assert not done.path.exists()


def test_refused_workdir(show):
    done = show()
    again = show(f"--workdir={done.path}")
    refused(again, f"--workdir={done.path}", "partition.json", "new folder")


@pytest.mark.full
def test_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "experiments.partition", "--partition=shards:1", f"--workdir={tmp_path / 'shown'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and '"partition": "shards:1"' in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (again.returncode, again.stdout) == (2, "") and again.stderr.startswith("error: --workdir=")
