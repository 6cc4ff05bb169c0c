from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ahead import FOR_USERS, environment_of_users

from experiments.bench import __main__ as bench
from experiments.bench import arrivals, floor, measure, reference, report, scale, trace, workloads
from fedjax_lab import config as configs
from fedjax_lab import run
from fedjax_lab.data import sources

KEYS = {"workload", "seconds_per_round", "compile_seconds", "clients_per_second", "examples_per_second", "peak_rss_mb", "test_accuracy",
        "devices", "chunk", "versions"}


@pytest.fixture(autouse=True)
def backend():
    """Starts JAX with the devices of tests/conftest.py, whatever --devices says."""
    jax.devices()


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Sets the flags of the benchmark, apart from those of other programs in this process."""

    def parse(*items):
        monkeypatch.setattr(bench, "FLAGS", flags.FlagValues())
        bench.define()
        bench.FLAGS(["bench", f"--cache_dir={tmp_path}", *items])

    return parse


@pytest.fixture
def few(tmp_path):
    """An .npz of M examples of this shape with 10 classes that can be learned."""

    def make(examples, shape=(28, 28)):
        rng, y = np.random.default_rng(0), np.arange(examples) % 10
        x = rng.integers(0, 100, (examples, *shape)).astype(np.uint8)
        x.reshape(examples, -1)[np.arange(examples), y] = 255
        np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
        return tmp_path / "few.npz"

    return make


@pytest.fixture
def halves(tmp_path):
    """A partition file for the digits: 12 clients, the first of 30 examples and the others of 20."""
    index = np.full((12, 30), -1)
    index[0] = np.arange(30)
    index[1:, :20] = 30 + np.arange(220).reshape(11, 20)
    np.savez(tmp_path / "halves.npz", idx=index)
    return tmp_path / "halves.npz"


def test_one_object_with_the_accuracy_of_the_same_run_untimed(given, halves, capsys, monkeypatch):
    made, prepare = [], run.prepare
    monkeypatch.setattr(run, "prepare", lambda config: made.append(prepare(config)) or made[-1])
    given("--workload=digits", "--rounds=2", "--eval_every=2", "--warmup=1", "--devices=1", "--chunk=1", f"--partition_file={halves}")
    assert bench.main(["bench"]) == 0
    out = capsys.readouterr().out
    row = json.loads(out)
    assert out.count("\n") == 1 and row.keys() >= KEYS and {"fedjax_lab", "jax"} <= row["versions"].keys()
    assert (row["workload"], row["rounds"], row["clients"], row["cohort"], row["devices"], row["chunk"]) == ("digits", 2, 12, 10, 1, 1)
    assert row["clients_per_second"] * row["seconds_per_round"] == pytest.approx(10)
    examples = row["examples_per_second"] * row["seconds_per_round"]
    assert 200 <= round(examples, 6) <= 210  # the quotient and the product round
    assert 0 < row["compile_seconds"] and 30 < row["peak_rss_mb"]
    untimed = made[0]._replace(config=dataclasses.replace(made[0].config, rounds=3))
    assert row["test_accuracy"] == run.follow(untimed).history[-1]["test_accuracy"]


def test_pace_leaves_the_evaluation_out(given, monkeypatch):
    """A clock of its own: an evaluation takes 7 seconds, a round 2, but for the last call, where others held the machine: there the
    rival's round took as much longer."""
    given("--workload=digits", "--rounds=6", "--eval_every=2", "--warmup=3", "--devices=1")
    prepared, taken = run.prepare(bench.configure("digits")), []

    def clocked(sim, state, clock, count, due=False):
        taken.append((clock, count, due))
        ids = jnp.tile(jnp.arange(10), (2, 1))
        record = type("Record", (), {"rounds": {"ids": ids, "mask": ids < 9}, "evaluation": {"test_accuracy": jnp.float32(0.5)}})
        return state, record, 7.0 * due + count * (2.0 if clock < 7 else 90.0)

    def slower(other, clock, count):
        taken.append(("rival", clock, count))
        return other.params + count, count * {3: 4.0, 5: 1.0}.get(clock, 45.0)

    monkeypatch.setattr(measure, "segment", clocked)
    monkeypatch.setattr(measure, "repeat", slower)
    row = measure.measure(prepared, 3, {"reference": lambda: reference.Setup(0, None, 99)})
    examples = prepared.population.train.size[:9].sum()
    assert taken == [(0, 0, True), (0, 2, False), (2, 1, False), (3, 0, True), ("rival", 0, 1), (3, 2, False), ("rival", 3, 2),
                     (5, 2, False), ("rival", 5, 2), (7, 2, False), ("rival", 7, 2), (9, 0, True)]
    assert (row["seconds_per_round"], row["evaluation_seconds"]) == (2.0, 7.0)
    assert row["examples_per_second"] == examples / 2.0
    assert 0 < row["processor_seconds_per_round"] < 1 and 0 < row["reference"].pop("processor_ratio")
    assert row["reference"] == {"seconds_per_round": 4.0, "ratio": 2.0, "ratio_least": 0.5, "ratio_most": 2.0, "examples_per_round": 99}


@pytest.mark.parametrize(("name", "clients", "cohort", "examples", "parameters"), [
    ("w1", 100, 10, 12, 199_210), ("w2", 100, 10, 12, 1_663_370), ("w3", 1_000, 100, 2, 199_210), ("w4", 10_000, 1_000, 1, 7_850)])
def test_workloads_are_the_published_ones(given, few, name, clients, cohort, examples, parameters):
    """On a file of the right shape, with few examples per client."""
    given(f"--npz={few(clients * examples)}", "--devices=1")
    prepared = run.prepare(bench.configure(name))
    plan, config = prepared.simulation.plan, prepared.config
    assert (plan["clients"], plan["cohort"], plan["parameters"]) == (clients, cohort, parameters)
    assert config.options == {"lr": 0.1, "epochs": 1, "batch_size": {"w3": 20, "w4": 6}.get(name, 10)}
    assert (prepared.population.train.size == examples).all()
    assert sum(np.prod(k) + k[-1] for k in workloads.shapes(prepared)[1]) == parameters
    classes = (prepared.population.counts > 0).sum(1)
    assert name not in ("w1", "w2") or classes.max() <= 4  # two shards, each across one border of classes at most


def test_npz_is_read(given, tmp_path):
    source = sources.digits()
    arrays = {f"{k}_{side}": getattr(source, side)[k] for k in "xy" for side in ("train", "test")}
    np.savez(tmp_path / "digits.npz", **arrays)
    given(f"--npz={tmp_path / 'digits.npz'}", "--devices=1")
    train = run.prepare(bench.configure("w1")).population.train.examples
    assert sorted(train["y"]) == sorted(source.train["y"])
    assert train["x"].sum(dtype=np.float64) == pytest.approx(source.train["x"].sum(dtype=np.float64))


def test_rivals_are_those_that_are_asked_for(given, monkeypatch):
    monkeypatch.setattr(run, "prepare", lambda config: None)
    monkeypatch.setattr(workloads, "check_even", lambda prepared, kind: None)
    monkeypatch.setattr(workloads, "rival", lambda prepared, kind: f"a {kind} round")
    monkeypatch.setattr(measure, "measure", lambda prepared, warmup, rivals: {kind: make() for kind, make in rivals.items()})
    for ways in ((), ("reference",), ("plain",), ("reference", "plain")):
        given("--workload=digits", *(f"--{kind}" for kind in ways))
        assert bench.one("digits", 0) == {"workload": "digits", **{kind: f"a {kind} round" for kind in ways}}


def test_several_workloads_are_processes(given, monkeypatch, capsys):
    calls = []

    def child(command, check, stdout, text):
        calls.append(command)
        return subprocess.CompletedProcess(command, len(calls) - 1, f"{len(calls)}\n")

    monkeypatch.setattr(bench.subprocess, "run", child)
    given("--workload=w3,digits", "--workload=w1", "--rounds=7", "--reference")
    assert bench.main(["bench"]) == 2
    assert [call[3] for call in calls] == ["--workload=w3", "--workload=digits", "--workload=w1"]
    assert all({"--rounds=7", "--reference"} <= set(call) and "--floor" not in call and call[0] == sys.executable for call in calls)
    assert capsys.readouterr().out == "1\n2\n3\n"
    given()
    assert workloads.chosen(bench.FLAGS.workload) == ["w1", "w2", "w3", "w4"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak starts anew on Linux only")
def test_the_peak_of_memory_starts_anew():
    held = np.ones(2**27, np.uint8)
    high = measure.peak_rss_mb()
    del held
    measure.forget_peak()
    assert measure.peak_rss_mb() < high - 100


@pytest.mark.parametrize("given_pace", [{}, {"eval_every": "4"}, {"eval_every": "4", "rounds": "6"}])
def test_five_calls_are_timed_by_default(given_pace):
    config = workloads.configure("w2", given_pace)
    assert (config.rounds, config.eval_every) == {0: (5, 1), 1: (20, 4), 2: (6, 4)}[len(given_pace)]


# The plain JAX round


def tree_of(prepared, params):
    """The reference's parameters in the structure of the library's: its kernels and biases in the order of the layers."""
    shapes = jax.eval_shape(prepared.task.init, jax.random.key(0))
    names = sorted(shapes, key=lambda name: (not name.startswith(("conv", "body")), name == "head", name))
    return {name: {"kernel": kernel, "bias": bias} for name, (kernel, bias) in zip(names, params, strict=True)}


@pytest.mark.parametrize(("kind", "model", "devices"), [
    ("reference", "2nn", 2), *(pytest.param(*rival, marks=pytest.mark.full) for rival in (("plain", "2nn", 1), ("reference", "cnn", 2))),
])
def test_the_plain_round_does_the_same_work(few, kind, model, devices):
    """With everyone taking part and whole batches nothing is random: both must come to the same model from the same start."""
    options = {"lr": workloads.LR, "batch_size": 4}
    config = configs.make({"task": f"npz_{model}:path={few(24)}", "partition": "iid", "clients": 6, "cohort": 6, "options": options,
                           "devices": devices, "rounds": 1, "eval_every": 1})
    prepared = run.prepare(config)
    workloads.check_even(prepared, kind)
    rival, sim = workloads.rival(prepared, kind), prepared.simulation
    start = tree_of(prepared, jax.tree.map(np.asarray, rival.params))
    state = sim.init(sim.world, jax.random.key(0))
    state = state._replace(server=jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), start, state.server))
    state, record, _ = measure.segment(sim, state, 0, 1)
    after = tree_of(prepared, rival.round(rival.params, jax.random.key(1)))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, after)
    assert rival.examples == sum(measure.examples_of(prepared, record, 1)) == 24
    assert min(jax.tree.leaves(moved)) > 1e-6
    for ours, theirs in zip(jax.tree.leaves(state.server), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_plain_round_learns_from_reshuffled_batches_of_a_changing_cohort(few):
    with np.load(few(200, (6, 6))) as arrays:
        x, y = arrays["x_train"].reshape(200, -1) / np.float32(255), arrays["y_train"].astype(np.int32)
    rows = np.arange(200, dtype=np.int32).reshape(10, 20)
    setup = reference.scanned(workloads.kernels("mlp", (6, 6, 1), 10), x, y, rows, 4, 5, 0.1, 2, jax.random.key(0))
    params, first = setup.params, reference.loss(setup.params, x, y)
    one, other = (setup.round(params, jax.random.key(i)) for i in range(2))
    assert not np.array_equal(one[0][0], other[0][0])
    for i in range(40):
        params = setup.round(params, jax.random.key(i))
    assert reference.loss(params, x, y) < 0.5 * first and setup.examples == 80


def test_the_plain_convolution_has_the_gradients_of_any_other():
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 6, 8, 3), (5, 5, 3, 4)]))
    ours, plain = (jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k))), (0, 1))(x, kernel)
                   for f in (reference.same, lambda x, k: reference.conv(x, k, 2)))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_reference_shares_no_code_with_the_library():
    program = "import sys, experiments.bench.reference; assert not [m for m in sys.modules if m.startswith('fedjax_lab')]"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# The floors


def test_operations_are_the_issue_s_and_the_compiler_s(few):
    """w1's 26 ms and w2's 2.14 s at 203 GFLOP/s; and what XLA counts in the gradient, elementwise work apart."""
    for name, model, seconds in (("w1", "2nn", 0.026), ("w2", "cnn", 2.14), ("w4", "logreg", 0.00093)):
        kernels = workloads.kernels(model, (28, 28, 1), 10)
        ours = floor.operations(kernels, (28, 28, 1))
        assert 6000 * ours / 203e9 == pytest.approx(seconds, rel=0.01), name
        params = jax.eval_shape(lambda k, kernels=kernels: reference.init(k, kernels), jax.random.key(0))
        x = jax.ShapeDtypeStruct((10, 28, 28, 1), jnp.float32)
        compiled = jax.jit(jax.grad(reference.loss)).lower(params, x, jax.ShapeDtypeStruct((10,), jnp.int32)).compile()
        assert 10 * ours == pytest.approx(compiled.cost_analysis()["flops"], rel=0.2), name


def test_floors_follow_the_rates(given, few, monkeypatch):
    given(f"--npz={few(400)}", "--devices=1")
    prepared = run.prepare(bench.configure("w1"))  # 4 examples a client
    monkeypatch.setattr(floor, "sgemm", lambda devices: 50.0)
    monkeypatch.setattr(floor, "bandwidth", lambda devices, size: 8.0 if size == floor.LARGE else 4.0)
    found = floor.floors(prepared, 40, 0.5)
    assert found["gflop"] == pytest.approx(40 * 879_200 / 1e9)
    assert found["arithmetic_seconds"] == pytest.approx(40 * 879_200 / 50e9)
    assert found["traffic_gb"] == pytest.approx(4 * 199_210 * (2 * 4 + 3 * 10) / 1e9)
    assert found["memory_seconds"] == pytest.approx(found["traffic_gb"] / 4 + 40 * 784 * 4 / 1e9 / 8)
    assert found["fraction"] == pytest.approx(found["memory_seconds"] / 0.5) and found["memory_seconds"] > found["arithmetic_seconds"]


def test_rates_are_work_over_time(monkeypatch):
    ran = []

    def second(call):
        ran.append(call())
        return 1.0

    monkeypatch.setattr(floor, "best", second)
    monkeypatch.setattr(floor, "SIZES", (8, 32))
    assert floor.sgemm.__wrapped__(2) == 2 * 2 * 32**3 / 1e9
    assert floor.bandwidth.__wrapped__(2, 2**20) == 3 * 64 * 2 * 2**20 / 1e9
    assert ran[-1].shape == (2, 2**18) and float(ran[-1].max()) == 33.0  # 64 times y + x / 2


# The profile


def test_an_operation_s_time_is_without_those_inside_it():
    spans = (("while", 0, 100), ("dot", 10, 40), ("add", 40, 50), ("while", 60, 90), ("dot", 60, 70), ("dot", 100, 130))
    events = [trace.Event(*span) for span in spans]
    assert trace.alone(reversed(events)) == [("while", 30), ("dot", 30), ("add", 10), ("while", 20), ("dot", 10), ("dot", 30)]


def test_profile_finds_the_expensive_operation(tmp_path):
    @functools.partial(jax.jit, compiler_options=FOR_USERS)  # otherwise tanh is as expensive
    def program(x):
        return jax.lax.fori_loop(0, 7, lambda i, x: jnp.tanh(x @ x), x)

    x = jnp.ones((400, 400))
    program(x)
    trace.record(tmp_path, lambda: program(x))
    sources = trace.sources_of(program.lower(x).compile().as_text())
    first, *others = trace.operations(tmp_path, sources)
    assert first.calls >= 7 and "dot_general" in first.source and first.share > 0.3 and len(others) < trace.TOP
    assert sorted(others, key=lambda r: -r.seconds) == others and trace.table([first]).splitlines()[1].startswith(first.name)
    with pytest.raises(ValueError, match="no operation"):
        trace.operations(tmp_path / "empty")


@pytest.mark.full
def test_profile_and_floor_of_a_workload(tmp_path):
    """As compiled for users: without fusions other operations are the expensive ones."""
    command = ("--workload=digits", "--rounds=1", "--eval_every=1", "--warmup=0", "--devices=1", f"--profile={tmp_path}", "--floor", f"--cache_dir={tmp_path}")
    done = subprocess.run([sys.executable, "-m", "experiments.bench", *command], check=True, capture_output=True, text=True,
                          env=environment_of_users())
    row = json.loads(done.stdout)
    assert len(row["operations"]) == trace.TOP and all(r["name"] in done.stderr for r in row["operations"])
    assert any("body_0" in r["source"] for r in row["operations"]) and 0 < row["floor"]["fraction"]


# Scale and report


def test_axes_hold_what_they_say():
    for axis, points in scale.AXES.items():
        assert all(configs.make(settings).cohort >= 1 for _, _, settings in points()), axis
    shared = scale.AXES["clients"]()
    sizes = [(value, settings["task"].split("size=")[1].split(",")[0], settings["cohort"]) for _, value, settings in shared]
    assert {value * int(size) for value, size, _ in sizes} == {60_000} and all(value == cohort for value, _, cohort in sizes)
    assert max(value for _, value, _ in scale.AXES["population"]()) == 15_000_000


@pytest.mark.full
def test_a_point_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path):
    small = [("logreg", n, scale.crowd("logreg", n, 6, 3, 3, dim=4, devices="1")) for n in (5, 50)]
    monkeypatch.setattr(scale, "AXES", {"clients": lambda: small, "cohort": lambda: small})
    points = scale.run_axes(["clients"], {"cache_dir": str(tmp_path)})
    assert [(p["axis"], p["series"], p["value"], p["clients"], p["cohort"]) for p in points] == [
        ("clients", "logreg", 5, 5, 3), ("clients", "logreg", 50, 50, 3)]
    assert all(0 < p["seconds_per_round"] < p["startup_seconds"] and p["peak_rss_mb"] > 30 for p in points)
    report.write(tmp_path, [], points)
    assert (tmp_path / "PERFORMANCE.png").stat().st_size > 5000
    text = (tmp_path / "PERFORMANCE.md").read_text()
    longest = max(p["seconds_per_round"] for p in points) / min(p["seconds_per_round"] for p in points)
    assert f"{longest:.2f} times the shortest" in text and "| clients | logreg | 50 |" in text
    report.write(tmp_path, [], [{**points[0], "axis": "cohort"}])
    assert [(p["axis"], p["value"]) for p in report.read(tmp_path)["scale"]] == [("clients", 5), ("clients", 50), ("cohort", 5)]


def test_scale_varies_the_axes_that_are_named(given, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(scale, "run_axes", lambda axes, shared: asked.append((*axes, shared)) or [])
    monkeypatch.setattr(report, "write", lambda folder, rows, points: None)
    for more, axes in ((("--axes=cohort,devices", "--chunk=2"), ["cohort", "devices"]), ((), list(scale.AXES))):
        asked.clear()
        given("--scale", f"--out={tmp_path}", *more)
        assert bench.main(["bench"]) == 0 and [axis for axis, _ in asked] == axes
        assert all(("chunk" in shared) == bool(more) for _, shared in asked)


def row(**changes):
    side = {"seconds_per_round": 0.04, "ratio": 1.25, "ratio_least": 1.2, "ratio_most": 1.3, "processor_ratio": 1.17, "examples_per_round": 6000}
    rates = {"gflop": 5.3, "traffic_gb": 1.0, "examples_gb": 0.02, "sgemm_gflops": 203.0, "model_gb_per_second": 99.0,
             "memory_gb_per_second": 20.0, "arithmetic_seconds": 0.026, "memory_seconds": 0.01, "fraction": 0.52}
    return {"workload": "w1", "platform": "cpu", "devices": 2, "precision": "default", "device_kind": "cpu", "seconds_per_round": 0.05,
            "peak_rss_mb": 812.4, "clients": 100, "cohort": 10, "parameters": 199210, "chunk": 1, "lanes": 8, "compile_seconds": 3.2,
            "versions": {"jax": "1.2.3"}, "reference": side, "floor": rates, **changes}


def test_the_table_says_what_was_missed_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REASONS", {("w1", "cpu"): "Because.", ("w3", "cpu"): "Never shown."})
    good = row(workload="w3", reference={**row()["reference"], "ratio": 1.0})
    plain = {**row(workload="w2"), "seconds_per_round": 0.0363}
    report.write(tmp_path, [row(), good, plain])
    lines = (tmp_path / "PERFORMANCE.md").read_text().splitlines()
    w1, w2, w3 = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("w1", "w2", "w3"))
    assert "1.25 (1.20 to 1.30)" in w1 and "at most 1.1: **missed**; Because." in w1 and "0.52" in w1 and "812" in w1 and "| 1.17 |" in w1
    assert "1.40 times the arithmetic floor, at most 1.4: reached" in w2
    assert "1.00 times the plain JAX round, at most 1.1: reached" in w3 and "Never shown" not in w3
    assert any("jax 1.2.3" in line and "5.3 GFLOP" in line for line in lines)


def test_a_new_row_takes_the_place_of_its_like(tmp_path):
    report.write(tmp_path, [row(), row(workload="w4"), row(platform="gpu", peak_device_mb=5.0)])
    report.write(tmp_path, [row(seconds_per_round=0.0123456789)])
    found = report.read(tmp_path)["workloads"]
    assert [(r["workload"], r["platform"], r["seconds_per_round"]) for r in found] == [
        ("w1", "cpu", 0.0123457), ("w4", "cpu", 0.05), ("w1", "gpu", 0.05)]
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "PERFORMANCE.png").exists()


def test_the_written_table_is_that_of_its_numbers():
    """Nobody has edited the document by hand."""
    if (report.FOLDER / "PERFORMANCE.json").exists():
        assert (report.FOLDER / "PERFORMANCE.md").read_text() == report.document(report.read())


def test_write_measures_with_reference_and_floor(given, monkeypatch, tmp_path, capsys):
    def child(command, check, stdout, text):
        assert {"--reference", "--floor"} <= set(command)
        return subprocess.CompletedProcess(command, 0, json.dumps(row()) + "\n") if "--workload=w1" in command else (
            subprocess.CompletedProcess(command, 2, ""))

    monkeypatch.setattr(bench.subprocess, "run", child)
    given("--workload=w1,w3", "--write", f"--out={tmp_path}")
    assert bench.main(["bench"]) == 2 and capsys.readouterr().out.count("\n") == 1
    assert [r["workload"] for r in report.read(tmp_path)["workloads"]] == ["w1"]


@pytest.mark.parametrize(("items", "words"), [
    (["--workload=w9"], ["--workload=w9", "w1, w2, w3, w4, w5, digits, all"]),
    (["--workload=w1", "--npz=nowhere.npz"], ["--npz=nowhere.npz", "x_train"]),
    (["--workload=w1", f"--npz={__file__}"], [f"--npz={__file__}", "x_train"]),
    (["--workload=digits", "--npz=nowhere.npz"], ["--npz=nowhere.npz", "w1, w2, w3, w4"]),
    (["--workload=w1", "--npz=a.npz", "--data_dir=b"], ["--npz=a.npz", "--data_dir"]),
    (["--workload=w1", "--data_dir=nowhere"], ["mnist", "nowhere"]),
    (["--workload=digits", "--rounds=0"], ["--rounds", "0", ">= 1"]),
    (["--workload=digits", "--warmup=-1"], ["--warmup", "-1", ">= 0"]),
    (["--workload=digits", "--chunk=some"], ["--chunk", "some", "auto"]),
    (["--workload=digits", "--partition_file=nowhere.npz"], ["partition_file", "nowhere.npz"]),
    (["--workload=digits", "--reference"], ["--reference", "batches of 10", "w1, w2"]),
    (["--workload=w5", "--partition_file=a.npz"], ["--partition_file=a.npz", "w5"]),
    (["--scale", "--axes=cohort,size"], ["--axes=cohort,size", "'size'", "clients, cohort, population, devices"]),
    (["--workload=digits", "w1"], ["w1"]),
])
def test_bad_flags_are_one_line(given, capsys, items, words):
    given(*[item for item in items if item.startswith("--")])
    assert bench.main(["bench", *[item for item in items if not item.startswith("--")]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words)


def test_unknown_flag_of_the_command():
    done = subprocess.run([sys.executable, "-m", "experiments.bench", "--speed=9"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "speed" in done.stderr


@pytest.mark.full
def test_arrivals_are_simulated_by_both(given, monkeypatch, capsys, tmp_path):
    given("--arrivals", "--write", f"--out={tmp_path}")
    real = arrivals.compare
    monkeypatch.setattr(arrivals, "compare", lambda uploads, shared: real(500, shared))
    assert bench.work() == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["uploads"], row["in_training"], row["buffer"], row["parameters"]) == (500, 100, 10, 650)
    assert 0 < row["of_which_rolling_out"] < row["seconds"] and row["ratio"] == pytest.approx(row["loop_seconds"] / row["seconds"])
    assert report.read(tmp_path)["arrivals"][0]["seconds"] == pytest.approx(row["seconds"], rel=1e-5)


def test_arrivals_are_a_table(tmp_path):
    fields = {"uploads": 10_000, "in_training": 100, "buffer": 10, "seconds": 0.5, "of_which_rolling_out": 0.1, "loop_seconds": 4.5, "ratio": 9.0,
              "processor_ratio": 8.7654}
    report.write(tmp_path, [row()], arrivals=[row(**fields)])
    report.write(tmp_path, [], arrivals=[row(**fields, platform="gpu"), row(**{**fields, "ratio": 12.0})])
    lines = (tmp_path / "PERFORMANCE.md").read_text().splitlines()
    clocked = [line for line in lines if line.startswith("| 10,000 | 100 | 10 | 199,210 | 0.5 | 0.1 | 4.5 |")]
    assert ["reached" in line for line in clocked] == [True, False] and "**missed**" in clocked[1] and "| 8.77 |" in clocked[0]
    assert [r["workload"] for r in report.read(tmp_path)["workloads"]] == ["w1"]


@pytest.mark.full
def test_nodes_that_gossip_are_a_point():
    (_, nodes, settings), *_ = scale.AXES["nodes"]()
    found = scale.point({**settings, "devices": "1", "task": f"crowd_2nn:clients={nodes},size=6,dim=9"}, rounds=1)
    assert (found["clients"], found["cohort"], nodes) == (10, 10, 10) and 0 < found["seconds_per_round"] and found["parameters"] > 40_000
    assert max(nodes for _, nodes, _ in scale.AXES["nodes"]()) == 1_000


def test_the_plain_event_loop_does_what_fedbuff_does():
    """All clients share the same examples: it learns them, and only when a buffer is full."""
    y = np.arange(arrivals.SIZE) % 10
    loop = arrivals.Loop(np.eye(arrivals.DIM, dtype=np.float32)[y], y, np.zeros(arrivals.CLIENTS, int), 0)
    before = [reference.loss(loop.run(n), loop.x, loop.y) for n in (0, 10, 200)]
    assert before[0] > before[1] > before[2]
    np.testing.assert_array_equal(loop.run(9)[0][0], loop.run(0)[0][0])  # the buffer is not full
