from __future__ import annotations

import json
import math
import re

import jax
import numpy as np
import pytest

from experiments import claims
from experiments.claims import __main__ as command
from experiments.claims import measure, probes, report, scenarios
from experiments.claims.records import DISTANCE, TUNED, Claim, Margin, Metric, Scenario, Side, last_quarter, rounds_to
from fedjax_lab import registry, run, spec

CARDS = {"fedavg", "fedspeed", "rerce-fed", "rerce-fed-clu", "fedstale", "fedlex", "fedamd", "fedavg-m", "scaffold-m", "fedavg-m-vr",
         "scaffold-m-vr", "delta-sgd", "savic", "fedbr", "fedimpro"}
KEYS = {"claim", "method", "baseline", "scenario", "reduced", "metric", "expected", "measured", "baseline_measured", "gain", "shown", "seeds",
        "per_seed", "shared", "options", "settings", "tuning", "megabytes", "note", "seconds", "date", "versions"}
CATALOG = claims.catalog()
ROWS = {row["claim"]: row for row in report.read()}
SMALL = {"rounds": 4, "eval_every": 1, "cohort": 3}


@pytest.fixture(scope="module")
def methods():
    return registry.systems()


def tiny(name: str = "tiny", rates=TUNED, **changes) -> Claim:
    """FedAvg of three bowls against itself with a smaller step, in four rounds of one step of gradient descent."""
    small = Scenario("three bowls", SMALL, {"batch_size": 1}, scenarios.bowls(clients=3, dim=2))
    slow = Side("fedavg", {"lr": 0.01}, {})
    return Claim(name, Side("fedavg", {} if rates else {"lr": 0.1}, rates), slow, small, DISTANCE, Margin("times", 1.5), tuning=(100,))._replace(**changes)


def descended(lr: float) -> np.ndarray:
    """|x - x*|^2 after 0..4 rounds of gradient descent on those bowls, by hand."""
    from fedjax_lab.data import quadratic

    bowl = quadratic.quadratic(3, dim=2)
    a, o = (bowl.train[k].astype(np.float64) for k in "ao")
    best, x, found = (a * o).sum(0) / a.sum(0), np.zeros(2), []
    for _ in range(5):
        found.append(((x - best) ** 2).sum())
        x = x - lr * (a * (x - o)).mean(0)
    return np.array(found)


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """The backend with the devices of tests/conftest.py, a cache of its own, and JAX's settings as they were before."""
    jax.devices()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def by_hand(cells, clients=None, metric=None) -> list[list[dict[str, float]]]:
    """In place of measure.train: the rows of those runs, without running them."""
    curves = [descended(cell.options["lr"]) for cell in cells]
    return [[{"round": i, "test_distance": x, "bytes_up": 1, "bytes_down": 2} for i, x in enumerate(curve)] for curve in curves]


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The command on claims of the test's own, which writes into a folder of the test's own and trains by hand."""

    def call(*argv: str, entries: tuple[Claim, ...] = (tiny(),)) -> int:
        monkeypatch.setattr(claims, "catalog", lambda: {claim.name: claim for claim in entries})
        for function in (report.read, report.write):
            monkeypatch.setattr(function, "__defaults__", (tmp_path,))
        return command.main(list(argv))

    monkeypatch.setattr(measure, "train", by_hand)
    call.folder = tmp_path
    return call


def test_every_claim_names_methods_and_options_that_there_are(methods):
    for claim in CATALOG.values():
        for side in (claim.method, claim.baseline):
            assert side.method in methods, claim.name
            rates = {option: grid[0] for option, grid in side.rates.items()}
            spec.bind(methods[side.method], (), {**claim.scenario.options, **side.options, **rates}, name=side.method)
            cell = measure.cells(claim.scenario, side, [rates], [7])[0]
            assert (cell.seed, cell.rounds) == (7, {**claim.scenario.settings, **side.settings}["rounds"])


def test_every_system_of_the_cards_has_a_claim(methods):
    assert CARDS & set(methods) <= {claim.method.method for claim in CATALOG.values()}


def test_rates_come_from_one_grid_and_other_seeds():
    for claim in CATALOG.values():
        grids = [side.rates for side in (claim.method, claim.baseline)]
        assert all(grids[0][option] == grids[1][option] for option in grids[0].keys() & grids[1].keys()), claim.name
        assert all(len(grid) >= 3 and len({*np.diff(np.log(grid)).round(1)}) == 1 for rates in grids for grid in rates.values()), claim.name
        assert not set(claim.seeds) & set(claim.tuning) and len(set(claim.seeds)) >= 3


def test_recorded_rows_are_whole_and_agree_with_themselves(methods):
    for name, row in ROWS.items():
        assert set(row) == KEYS and name in CATALOG and row["method"] in methods and row["baseline"] in methods
        claim = CATALOG[name]
        sides = [measure.Measured([claim.metric.worst if v is None else v for v in row["per_seed"][side]], 0).mean for side in ("method", "baseline")]
        for mean, key in zip(sides, ("measured", "baseline_measured"), strict=True):
            assert mean == pytest.approx(claim.metric.worst if row[key] is None else row[key], rel=1e-4)
        assert row["shown"] == (measure.gain(claim, *sides) >= claim.margin.least), name
        assert row["expected"] == claim.margin.words(claim.metric.higher) and row["scenario"] == claim.scenario.text
        assert len(row["seeds"]) >= 3 and all(len(v) == len(row["seeds"]) for v in row["per_seed"].values())


def test_recorded_rates_are_within_their_grids():
    for row in ROWS.values():
        for side, tuning in row["tuning"].items():
            assert not set(tuning["seeds"]) & set(row["seeds"])
            points = [dict(item.split("=") for item in point.split(", ")) for point in tuning["tried"]]
            for option in points[0]:
                tried, best = sorted({float(p[option]) for p in points}), row["options"][side][option]
                assert float(f"{best:g}") in tried
                hopeless = all(value is None for value in tuning["tried"].values())  # no rate reaches the target, up to both ends
                assert (hopeless or best in (tried[0], tried[-1])) == (option in tuning["at_edge"]), (row["claim"], side, option)


def test_table_is_made_of_the_rows():
    assert not ROWS or (report.FOLDER / "CLAIMS.md").read_text() == report.table(list(ROWS.values()))


@pytest.mark.parametrize(("by", "least", "higher", "method", "baseline", "gain", "words"), [
    ("plus", 2, True, 93.5, 91.0, 2.5, "at least 2 higher"),
    ("plus", 2, False, 93.5, 91.0, -2.5, "at least 2 lower"),
    ("plus", -1, True, 93.5, 94.0, -0.5, "at most 1 lower"),
    ("plus", 0, True, 93.5, 93.5, 0.0, "not lower"),
    ("times", 10, False, 0.02, 0.5, 25.0, "at least 10 times lower"),
    ("times", 1.5, True, 3.0, 2.0, 1.5, "at least 1.5 times higher"),
    ("times", 1, False, 7.0, 7.0, 1.0, "not higher"),
    ("times", 2, False, 0.0, 3.0, 1e12, "at least 2 times lower"),
    ("times", 2, False, 0.0, 0.0, 1.0, "at least 2 times lower"),
    ("times", 2, False, math.inf, 3.0, 0.0, "at least 2 times lower"),
    ("times", 2, False, 3.0, math.inf, 1e12, "at least 2 times lower"),
    ("plus", 2, True, 90.0, -math.inf, math.inf, "at least 2 higher"),
    ("plus", 2, True, -math.inf, 90.0, -math.inf, "at least 2 higher"),
])
def test_gain_is_by_how_much_the_method_is_better(by, least, higher, method, baseline, gain, words):
    margin = Margin(by, least)
    assert margin.gain(method, baseline, higher) == pytest.approx(gain)
    assert margin.words(higher) == words


def test_baseline_that_never_gets_there_counts_as_the_last_round():
    claim = tiny(metric=rounds_to(0.9))
    assert measure.gain(claim, 2.0, math.inf) == 2.0  # of 4 rounds
    assert measure.gain(claim, math.inf, 2.0) == 0.0
    assert measure.gain(claim, math.inf, math.inf) == 1.0


@pytest.mark.parametrize(("curve", "expected"), [
    ((0.1, 0.5, 0.7), 10 + 10 * 0.1 / 0.2),
    ((0.1, 0.5, 0.3, 0.7), 20 + 10 * 0.1 / 0.2),  # from the best before, at the last round that it held
    ((0.8, 0.9), 0),
    ((0.1, 0.6), 10),
    ((0.1, 0.5, 0.59), math.inf),
])
def test_rounds_to_a_target_interpolate_the_monotone_curve(curve, expected):
    rows = [{"round": 10 * i, "test_accuracy": a} for i, a in enumerate(curve)]
    assert rounds_to(0.6).value(rows) == pytest.approx(expected)


def test_last_quarter():
    rows = [{"round": r} for r in (0, 5, 10, 15, 20)]
    assert [row["round"] for row in last_quarter(rows)] == [20]
    assert [row["round"] for row in last_quarter([{"round": r} for r in range(9)])] == [7, 8]


def parabola(**best: float):
    """A score that is 0 at the best rates and grows with the log distance from them."""
    return lambda points: [sum(math.log(point[o] / x) ** 2 for o, x in best.items()) for point in points]


@pytest.mark.parametrize(("best", "rate", "edge"), [(0.1, 0.1, ()), (9.0, 10.0, ()), (1e-3, 1e-3, ()), (1e9, 1e5, ("lr",))])
def test_grid_grows_at_the_end_where_the_best_is(best, rate, edge):
    chosen = measure.choose({"lr": (0.01, 0.1, 1.0, 10.0)[: 4 if best > 1e3 else 3]}, parabola(lr=best), higher=False)
    assert (chosen.rates["lr"], chosen.edges) == (pytest.approx(rate), edge)


def test_grid_grows_in_every_option_and_tries_no_point_twice():
    seen = []
    score = parabola(lr=3e-3, server_lr=40.0)

    def counted(points):
        seen.extend(tuple(p.values()) for p in points)
        return [-s for s in score(points)]

    chosen = measure.choose({"lr": (0.01, 0.03, 0.09), "server_lr": (1.0, 4.0, 16.0)}, counted, higher=True)
    assert chosen.rates == {"lr": 0.00333, "server_lr": 64.0} and not chosen.edges
    assert len(seen) == len(set(seen)) == len(chosen.tried)


@pytest.mark.full
def test_grid_ends_where_rates_are_no_longer_valid():
    chosen = measure.choose({"beta": (0.01, 0.1, 1.0)}, parabola(beta=50.0), False, lambda rates: rates["beta"] <= 1)
    assert (chosen.rates, chosen.edges, len(chosen.tried)) == ({"beta": 1.0}, ("beta",), 3)
    claim = tiny(rates={"lr": (0.1, 0.3, 0.9), "beta": (0.04, 0.2, 1.0)}, tuning=(0,))
    claim = claim._replace(method=claim.method._replace(method="fedavg-m", options={}))
    assert max(float(point.split("beta=")[1]) for point in measure.tune(claim, claim.method, measure.nothing()).tried) == 1


def test_of_equal_rates_the_middle_one_is_chosen():
    assert measure.choose({"lr": (0.1, 1.0, 10.0)}, lambda points: [5.0] * len(points), higher=False).rates == {"lr": 1.0}


def test_grid_where_everything_breaks_off_grows_both_ways():
    def stable(below):
        return lambda points: [1 / point["lr"] if point["lr"] < below else math.inf for point in points]

    chosen = measure.choose({"lr": (0.1, 1.0, 10.0)}, stable(2e-3), higher=False)
    assert chosen.rates == {"lr": 1e-3} and chosen.edges == ()
    lost = measure.choose({"lr": (0.1, 1.0, 10.0)}, stable(0), higher=False)
    assert len(lost.tried) == 3 + 2 * measure.EXTENSIONS and lost.edges == ("lr",)


def test_runs_are_those_of_the_cells(backend):
    """One seed, three rates, one of which breaks off: gradient descent by hand, since a client has one example and all take part."""
    claim = tiny()
    cells = measure.cells(claim.scenario, claim.method, [{"lr": x} for x in (0.1, 1e30, 0.3)], [0])
    runs = measure.train(cells, claim.scenario.clients(), DISTANCE)
    assert [[row["round"] for row in rows] for rows in runs] == [[0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4]]
    for rows, lr in ((runs[0], 0.1), (runs[2], 0.3)):
        np.testing.assert_allclose([row["test_distance"] for row in rows], descended(lr), rtol=1e-4)


def test_a_claim_from_its_rates_to_its_row(stub, capsys):
    assert stub("fedavg") == 0
    row = json.loads((stub.folder / "CLAIMS.json").read_text())[0]
    grid = {point: descended(float(point[3:]))[4] for point in row["tuning"]["method"]["tried"]}
    assert row["tuning"]["method"]["tried"] == pytest.approx(grid, rel=1e-5) and set(row["tuning"]) == {"method"}
    best = min(grid, key=grid.get)
    assert row["options"]["method"] == {"batch_size": 1, "lr": float(best[3:])}
    assert row["measured"] == pytest.approx(grid[best], rel=1e-5)
    assert row["baseline_measured"] == pytest.approx(descended(0.01)[4], rel=1e-5)
    assert row["gain"] == pytest.approx(descended(0.01)[4] / grid[best], rel=1e-5) and row["shown"]
    assert set(row) == KEYS and row["megabytes"] == {"method": 3e-6, "baseline": 3e-6}
    out = capsys.readouterr().out
    assert out.startswith("tiny: shown: ") and "expected at least 1.5 times lower" in out
    assert "| tiny | fedavg (lr=0.01) |" in (stub.folder / "CLAIMS.md").read_text()


def test_rows_of_other_claims_stay_and_unknown_ones_go(stub):
    two = (tiny("one", {}), tiny("two", {}, note="found out later"))
    assert stub("--all", entries=(*two, tiny("three", {}))) == 0
    old = json.loads((stub.folder / "CLAIMS.json").read_text())
    report.write([{**row, "seconds": -1} for row in old], dict.fromkeys(("one", "two", "three"), ""), stub.folder)
    assert stub("one", entries=two) == 0
    rows = json.loads((stub.folder / "CLAIMS.json").read_text())
    assert [(row["claim"], row["seconds"] < 0, row["note"]) for row in rows] == [("one", False, ""), ("two", True, "found out later")]
    text = (stub.folder / "CLAIMS.md").read_text()
    assert stub("--table", entries=two) == 0 and (stub.folder / "CLAIMS.md").read_text() == text and "found out later" in text


def test_quick_takes_the_recorded_rates_and_writes_nothing(stub, capsys):
    assert stub("tiny", "--quick") == 0
    assert f"late mean {report.number(descended(0.1)[4])} against fedavg's" in capsys.readouterr().out
    assert not list(stub.folder.glob("CLAIMS*"))
    assert stub("tiny") == 0
    best = json.loads((stub.folder / "CLAIMS.json").read_text())[0]["options"]["method"]["lr"]
    assert stub("tiny", "--quick") == 0
    assert f"late mean {report.number(descended(best)[4])} against" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_that_breaks_off_is_infinitely_bad(monkeypatch):
    claim = tiny(rates={})
    monkeypatch.setattr(measure, "train", lambda cells, *a: by_hand(cells, *a) if cells[0].options["lr"] == 0.1 else [[] for _ in cells])
    row = report.plain(measure.record(claim))
    assert row["baseline_measured"] is None and row["shown"] and json.dumps(row, allow_nan=False)
    higher = Metric("loss", lambda rows: rows[-1]["test_loss"], True)
    assert measure.measure(higher, [[], [{"test_loss": 1.0, "bytes_up": 1, "bytes_down": 2}]]) == measure.Measured([-math.inf, 1.0], 3e-6)


def test_what_trains_nothing_is_run_by_its_metric():
    """Both sides with their options, seed by seed."""
    metric = Metric("product", lambda rows: rows[-1]["product"], True, run=lambda config: [
        {"round": 1, "product": config.seed * config.options["lr"], "bytes_up": 3, "bytes_down": config.seed}])
    claim = Claim("own", Side("fedavg", {"lr": 0.5}, {}), Side("fedavg", {"lr": 0.25}, {}), Scenario("nothing", {"rounds": 1}, clients=lambda: (None, None)),
                  metric, Margin("times", 2))
    row = measure.record(claim)
    assert row["per_seed"] == {"method": [0, 0.5, 1], "baseline": [0, 0.25, 0.5]} and row["shown"] and row["megabytes"]["method"] == 5e-6


def test_a_side_may_have_a_model_of_its_own(monkeypatch):
    """In tuning and in measuring, on the clients of the scenario."""
    seen = []
    monkeypatch.setattr(measure, "train", lambda cells, clients, metric: seen.append(clients) or by_hand(cells))
    claim = tiny(method=Side("fedavg", task=lambda people: ("own", people.clients)))
    measure.record(claim)
    *tuned, own, shared = seen
    assert {id(people) for _, people in seen} == {id(shared[1])} and shared[0].name == "quadratic"
    assert tuned and all(task == ("own", 3) for task, _ in (*tuned, own))


def test_a_run_that_two_claims_ask_for_is_trained_once(monkeypatch):
    asked, first = [], tiny()
    second = first._replace(name="other", metric=first.metric._replace(name="other"), baseline=Side("fedavg", {"lr": 0.02}, {}))
    monkeypatch.setattr(measure, "train", lambda cells, *a: asked.extend(map(repr, cells)) or by_hand(cells))
    alone = [measure.record(claim) for claim in (first, second)]
    apart, known = len(asked), measure.nothing()
    asked.clear()
    together = [measure.record(claim, known) for claim in (first, second)]
    assert len(set(asked)) == len(asked) < apart
    assert [row["per_seed"] for row in together] == [row["per_seed"] for row in alone]


@pytest.mark.parametrize(("argv", "words"), [
    (["nosuch"], ["nosuch", "tiny"]), (["--family=nosuch"], ["nosuch", "optimization"]), ([], ["--all", "tiny"])])
def test_wrong_requests_are_one_line(stub, capsys, argv, words):
    assert stub(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words)


def test_a_set_that_is_missing_stops_its_own_claims_only(stub, capsys, monkeypatch):
    monkeypatch.delenv("FEDJAX_LAB_DATA", raising=False)
    lacks = Claim("lacks", Side("fedavg"), Side("fedavg"), scenarios.mnist(2), DISTANCE, Margin("plus", 0))
    assert stub("--family=optimization", "--quick", entries=(lacks, tiny())) == 2
    out, err = capsys.readouterr()
    assert out.startswith("tiny: ") and "error: lacks: source 'mnist' not found" in err


@pytest.mark.full
def test_agreement_of_heads_is_the_mean_cosine_of_every_pair(backend):
    """With one full step from the last model, a client's change is its gradient."""
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert probes.agreement(rows) == pytest.approx((0 + 2 * math.sqrt(0.5)) / 3)
    claim = tiny(scenario=scenarios.digits(2, clients=4, cohort=2)._replace(options={"batch_size": "full"}))
    cell = measure.cells(claim.scenario, Side("fedavg"), [{"lr": 0.1}], [0])[0]
    prepared = run.prepare(cell)
    *_, last = run.rounds(prepared)
    state, clock = last.state, last.clock
    people, heads = prepared.population, []
    for first, size in zip(people.train.offset, people.train.size, strict=True):
        batch = {k: v[first:first + size] for k, v in people.train.examples.items()} | {"mask": np.ones(size, bool)}
        slope = jax.grad(lambda p, batch=batch: prepared.task.loss(p, batch, None)[0])(state.server)
        heads.append(np.concatenate([x.ravel() for x in jax.tree.leaves(slope["head"])]))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(heads) for b in heads[:i]]
    probed = Metric("agreement", lambda rows: rows[-1]["head_agreement"], True, probe=probes.head_agreement)
    rows, = measure.train([cell], (prepared.task, prepared.population), probed)
    assert [row["round"] for row in rows] == [0, 2] and probed.value(rows) == pytest.approx(np.mean(pairs), abs=1e-4)
    assert probes.head_agreement(prepared)(state, clock)["head_agreement"] == pytest.approx(np.mean(pairs), abs=1e-4)


def test_noise_of_a_bowl_is_averaged_over_the_batch():
    task, people = scenarios.bowls(clients=2, dim=3, noise=2.0, rows=16)()
    assert people.train.size.tolist() == [16, 16]

    def deviation(count: int) -> float:
        batch = {**{k: v[:16] for k, v in people.train.examples.items()}, "mask": np.arange(16) < count}
        slopes = jax.vmap(lambda key: jax.grad(lambda p: task.loss(p, batch, key)[0])({"x": np.zeros(3, np.float32)})["x"])
        return float(np.std(slopes(jax.random.split(jax.random.key(0), 4000)), axis=0).mean())

    assert [deviation(count) for count in (1, 4, 16)] == pytest.approx([2.0, 1.0, 0.5], rel=0.05)
    assert deviation(0) == 0


@pytest.mark.full
def test_quick_shows_the_direction_of_a_claim(backend, capsys):
    """QUAD without noise: FedVARP comes to rest, FedAvg wanders."""
    claim = CATALOG["fedvarp/card"]
    assert command.main(["fedvarp/card", "--quick"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "nothing is written" in out
    assert float(re.search(r"gain ([^,]+),", out)[1]) >= claim.margin.least


@pytest.mark.parametrize("make", [
    scenarios.bowls(), scenarios.bowls(rows=4), scenarios.opposed(noise=0.0), scenarios.least_squares(clients=4, dim=5, size=20, spread=1.0, noise=0.1)])
def test_scenarios_have_the_optimum_that_they_say(make):
    """A Newton step on the pooled loss ends where the metric "distance" is zero."""
    task, people = make()
    batch = {**people.train.examples, "mask": np.ones(int(people.train.size.sum()), bool)}
    (name, x), = task.init(jax.random.key(0)).items()

    @jax.jit
    def loss(x):
        return task.loss({name: x}, batch, jax.random.key(0))[0]

    def metrics(x):
        return {k: v[0] for k, v in task.metrics(task.apply({name: x}, batch), batch).items()}

    best = x - np.linalg.solve(jax.jit(jax.hessian(loss))(x), jax.grad(loss)(x))
    assert metrics(best)["distance"] < 1e-6 * metrics(x)["distance"]
    np.testing.assert_allclose([metrics(best)[f"x{j}"] for j in range(len(x))], best)
