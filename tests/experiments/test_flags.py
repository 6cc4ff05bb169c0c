"""Every flag of every program changes something, and a test shows what; an unknown one is refused with the nearest valid name."""
from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
import sys

import jax
import pytest
from absl import flags

from experiments import audit, compare, matrix, partition, screen, series, sweep, train
from experiments.bench import __main__ as bench
from fedjax_lab import config as configs
from fedjax_lab import many, run

TESTS = pathlib.Path(__file__).parents[1]
TRAIN, COMPARE, SWEEP, MATRIX, PARTITION, RESUME, KILLS, BENCH = (
    f"experiments/test_{name}.py" for name in ("train", "compare", "sweep", "matrix", "partition_cli", "resume", "resume_kills", "bench"))
LOCAL, CLUSTERS, HERE = "launch/test_launch_local.py", "launch/test_clusters.py", "experiments/test_flags.py"
AUDIT = "experiments/test_audit.py"
SETTINGS = [field.name for field in configs.fields()]
OFTEN = "seeds set metric target at_once workdir"

# program: {the test, or the table of one, that shows what flags change: those flags}
SHOWN = {
    "experiments.train": {
        f"{TRAIN}::EFFECTS": "method task partition wire_up wire_down aggregator attack privacy server clients cohort augment participation rounds "
        "target_accuracy eval_every population client_state eval_clients client_test seed data_seed chunk devices lanes",
        f"{TRAIN}::test_partition_file": "partition_file", f"{TRAIN}::test_precision": "precision", f"{TRAIN}::test_data_dir": "data_dir",
        f"{TRAIN}::test_cache_dir": "cache_dir", f"{TRAIN}::test_set": "set", f"{TRAIN}::test_list": "list",
        f"{TRAIN}::test_refused_workdir": "workdir",
        "experiments/test_tensorboard.py::test_the_flag_writes_it_beside_the_rows": "tensorboard",
        "parts/test_statistics.py::test_the_rule_is_a_setting": "stats",
        "experiments/test_starts.py::test_it_is_a_setting": "init",
        "experiments/test_schedules.py::test_allow_untested_runs_another_schedule_and_says_so": "schedule allow_untested",
        "experiments/test_gossip_cli.py::test_the_graph_is_a_setting": "graph",
        f"{HERE}::test_model_devices": "model_devices", f"{RESUME}::test_checkpoints_come_by_rounds": "checkpoint_every keep",
        f"{KILLS}::LONG": "max_segment_seconds", f"{RESUME}::test_command_line": "resume",
        "test_platform.py::test_flags_come_before_the_environment": "coordinator processes process_id",
    },
    "experiments.compare": {
        f"{HERE}::VALUES": " ".join(name for name in SETTINGS if name != "method"), f"{COMPARE}::test_flags_of_a_comparison": "baseline metric target seeds",
        f"{COMPARE}::test_same_clients_same_models_same_cohorts": "methods set workdir", f"{HERE}::test_at_once_of_a_comparison": "at_once",
        f"{COMPARE}::test_tuning_takes_other_seeds_and_the_same_budget": "tune tune_seeds trials",
    },
    "experiments.sweep": {
        f"{HERE}::VALUES": " ".join(SETTINGS), f"{SWEEP}::BASE": "set seeds", f"{SWEEP}::SWEEP": "sweep", f"{SWEEP}::done": "workdir",
        f"{SWEEP}::test_flags_of_the_table": "metric target", f"{SWEEP}::test_it_is_interrupted_and_goes_on": "at_once", f"{SWEEP}::test_ratios": "ratios",
    },
    "experiments.matrix": {
        f"{HERE}::VALUES": " ".join(name for name in SETTINGS if name not in ("attack", "aggregator")),
        f"{MATRIX}::test_flags_of_a_matrix": "attacks aggregators shares seeds", f"{MATRIX}::MATRIX": "at_once", f"{MATRIX}::BASE": "set",
        f"{MATRIX}::test_refusals": "metric workdir",
    },
    "experiments.audit": {
        f"{HERE}::VALUES": " ".join(name for name in SETTINGS if name not in ("attack", "rounds")), f"{AUDIT}::audited": "workdir",
        f"{AUDIT}::test_uploads_leak_unless_they_are_defended": "victims", f"{AUDIT}::test_members_of_a_model_that_overfits_are_found": "attack",
        f"{AUDIT}::test_examples_of_a_batch_after_some_rounds": "examples rounds set",
    },
    "experiments.partition": {
        f"{PARTITION}::test_every_flag_of_the_partition_counts": "partition clients client_test data_seed partition_file",
        f"{PARTITION}::test_the_task_names_the_source_too": "task source", f"{PARTITION}::test_refused_workdir": "workdir",
        f"{PARTITION}::test_data_come_from_the_folder": "data_dir cache_dir",
    },
    "experiments.scenarios": {
        "experiments/test_scenarios.py::test_list_and_refusals": "list", "experiments/test_scenarios.py::test_data_dir_is_handed_on": "data_dir",
    },
    "experiments.claims.__main__": {
        "experiments/test_claims.py::test_quick_takes_the_recorded_rates_and_writes_nothing": "quick",
        "experiments/test_claims.py::test_rows_of_other_claims_stay_and_unknown_ones_go": "all table",
        "experiments/test_claims.py::test_a_set_that_is_missing_stops_its_own_claims_only": "family",
    },
    "experiments.bench.__main__": {
        f"{HERE}::VALUES": " ".join(bench.CONFIG), f"{BENCH}::test_several_workloads_are_processes": "workload", f"{BENCH}::test_npz_is_read": "npz",
        f"{BENCH}::test_one_object_with_the_accuracy_of_the_same_run_untimed": "warmup", f"{BENCH}::test_profile_and_floor_of_a_workload": "profile floor",
        f"{BENCH}::test_rivals_are_those_that_are_asked_for": "reference plain", f"{BENCH}::test_scale_varies_the_axes_that_are_named": "scale axes",
        f"{BENCH}::test_write_measures_with_reference_and_floor": "write out", f"{BENCH}::test_arrivals_are_simulated_by_both": "arrivals",
    },
    "experiments.report": {"experiments/test_report.py::test_flags_of_the_report": "out title"},
    "experiments.curves": {"experiments/test_curves.py::test_the_picture_is_of_these_runs": "out", "experiments/test_curves.py::test_the_axis_is_a_column_of_the_rows": "axis"},
    "fedjax_lab.methods.__main__": {"experiments/test_methods_cli.py::cards": "json"},
    "launch.local": {f"{LOCAL}::test_dry_run_prints_the_commands_and_does_nothing": "processes devices_per_process port dry_run"},
    "launch.kubernetes": {
        f"{CLUSTERS}::test_the_manifest_is_what_kubernetes_takes_and_dry_run_prints_it": "image processes resource selector dry_run",
    },
}
# a setting of a run: a value that is not its default
VALUES = {
    "method": "fedprox", "task": "digits_logreg", "partition": "iid", "partition_file": "who.npz", "wire_up": "half", "wire_down": "half",
    "aggregator": "median", "attack": "sign-flip", "privacy": "dp-fedavg:noise=2", "server": "adam:lr=0.01", "clients": "9", "cohort": "4", "init": "public:steps=9", "augment": "flip", "stats": "local",
    "participation": "poisson", "schedule": "buffered:2", "graph": "full", "allow_untested": "true", "rounds": "3", "target_accuracy": "0.3", "eval_every": "3", "population": "host", "client_state": "host",
    "eval_clients": "1", "client_test": "0.5", "seed": "1", "data_seed": "1", "chunk": "2", "devices": "2", "model_devices": "2", "lanes": "16",
    "precision": "float32", "data_dir": "data", "cache_dir": "cache", "checkpoint_every": "7", "keep": "3", "max_segment_seconds": "2.5",
}


def flags_of(name: str, monkeypatch, capsys) -> set[str]:
    """The flags of a program: those it defines, or those its --help lists."""
    module = importlib.import_module(name)
    if hasattr(module, "define"):
        values = flags.FlagValues()
        for place in (flags, module, series):
            monkeypatch.setattr(place, "FLAGS", values)
        module.define()
        return set(screen.own_flags())
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        module.main(["--help"]) if module.main.__code__.co_argcount else module.main()
    return set(re.findall(r"^  (?:-\w, )?--(\w+)", capsys.readouterr().out, re.MULTILINE)) - {"help"}


@functools.cache
def source(where: str) -> str:
    """The text of a test or of a table, by file and name."""
    file, name = where.split("::")
    text = (TESTS / file).read_text()
    for node in ast.parse(text).body:
        names = [node.name] if isinstance(node, ast.FunctionDef) else [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
        if name in names:
            return ast.get_source_segment(text, node)
    raise AssertionError(f"{where} is not there")


@pytest.mark.parametrize("name", SHOWN)
def test_every_flag_is_shown_by_a_test(name, monkeypatch, capsys):
    found = flags_of(name, monkeypatch, capsys)
    shown = [flag for names in SHOWN[name].values() for flag in names.split()]
    assert len(shown) == len(set(shown)) and set(shown) == found, f"missing: {found - set(shown)}, gone: {set(shown) - found}"
    for where, names in SHOWN[name].items():
        silent = [flag for flag in names.split() if not re.search(rf"(?<![a-z]){flag}(?![a-z])", source(where))]
        assert not silent, f"{where} does not name {silent}"


def test_every_program_is_here():
    """But launch/colab.py, which runs where nothing is installed, and whose one flag its own tests show."""
    files = [file for folder in ("experiments", "fedjax_lab", "launch") for file in (TESTS.parent / folder).rglob("*.py")]
    programs = {".".join(file.relative_to(TESTS.parent).with_suffix("").parts) for file in files if '__name__ == "__main__"' in file.read_text()}
    assert programs == {*SHOWN, "launch.colab"}


@pytest.mark.parametrize("name", SHOWN)
def test_an_unknown_flag_comes_with_the_nearest(name, monkeypatch, capsys):
    flag = max(flags_of(name, monkeypatch, capsys), key=len)
    wrong, module = f"--{flag[:-1]}x=1", importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        if hasattr(module, "define"):
            screen.parse_flags([name, wrong])
        monkeypatch.setattr(sys, "argv", [name, wrong])
        module.main([wrong]) if module.main.__code__.co_argcount else module.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"error: unknown flag --{flag[:-1]}x; valid: ") and err.endswith(f"; did you mean '{flag}'?\n")


@pytest.mark.parametrize("flag", VALUES)
def test_every_setting_reaches_the_runs(flag, program, monkeypatch, tmp_path):
    """What it does there is shown by the tests of experiments.train."""
    wanted, seen = configs.make({flag: VALUES[flag]}), []
    assert getattr(wanted, flag) != getattr(configs.make({}), flag)
    monkeypatch.setattr(train, "_train", lambda config: seen.append(config) or 0)
    monkeypatch.setattr(series, "train", lambda cells, path, **more: seen.append(cells[0].config) or {})
    monkeypatch.setattr(matrix, "places", lambda *_: [])
    monkeypatch.setattr(matrix, "conclude", lambda *_: None)
    monkeypatch.setattr(audit, "_audit", lambda config, *_: seen.append(config) or 0)
    monkeypatch.setattr(series, "conclude", lambda *_: None)
    monkeypatch.setattr(partition, "scenes", lambda config: seen.append(config) or [])
    for module, more in ((train, ()), (sweep, ()), (compare, ("--methods=fedavg",)), (matrix, ("--shares=0", "--aggregators=mean")), (audit, ()),
                         (partition, ())):
        if (flag, module) in (("method", compare), ("attack", audit)) or (module is partition and flag not in partition.CONFIG) or (
                module is matrix and flag in ("attack", "aggregator")):
            continue
        before = len(seen)
        status, _, err = program(module, f"--workdir={tmp_path / module.__name__}", f"--{flag}={VALUES[flag]}", *more)
        assert (status, err) == (0, "") and len(seen) == before + 1
        aggregator = {"aggregator": "mean"} if module is matrix else {}
        assert dataclasses.replace(seen[-1], options={}) == dataclasses.replace(wanted, **aggregator), module.__name__


@pytest.mark.parametrize("flag", bench.CONFIG)
def test_every_setting_reaches_a_benchmark(flag, monkeypatch):
    def configured(*argv):
        monkeypatch.setattr(bench, "FLAGS", flags.FlagValues())
        bench.define()
        bench.FLAGS(["bench", *argv])
        return getattr(bench.configure("digits"), flag)

    assert configured(f"--{flag}={VALUES[flag]}") == getattr(configs.make({flag: VALUES[flag]}), flag) != configured()


def test_every_setting_is_here():
    assert set(VALUES) == set(SETTINGS)


def test_at_once_of_a_comparison(program, monkeypatch, tmp_path):
    """It is the argument of `many.each`, whose tests show the rest."""
    asked = []

    def each(cells, *, at_once, report, blended):
        asked.append(at_once)
        raise ValueError("enough")

    monkeypatch.setattr(many, "each", each)
    for more in ((), ("--at_once=3",)):
        assert program(compare, "--methods=fedavg", f"--workdir={tmp_path / 'W'}", *more)[::2] == (2, "error: enough\n")
    assert asked == [None, 3]


def test_model_devices(tmp_path, monkeypatch):
    """Each device holds half of what the other setting leaves whole."""
    jax.devices()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def held(model_devices):
        config = configs.make({"task": "digits_logreg", "clients": 4, "cohort": 2, "devices": 2, "model_devices": model_devices})
        sim = run.prepare(config).simulation
        leaves = jax.tree.leaves(sim.init(sim.world, jax.random.key(0)).server)
        return sum(leaf.addressable_shards[0].data.size for leaf in leaves), sum(leaf.size for leaf in leaves)

    assert held(1) == (650, 650) and held(2) == (325, 650)
