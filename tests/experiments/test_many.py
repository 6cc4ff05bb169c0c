"""Many runs in one program give what each gives alone."""
from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from fedjax_lab import config as configs
from fedjax_lab import many, registry, run, spec
from fedjax_lab.registry import method
from fedjax_lab.types import Method, Record, Result

FULL = {"batch_size": "full"}  # compiles fast
SMALL = {"task": "digits_logreg", "partition": "public:60+dirichlet:0.3", "clients": 6, "cohort": 3, "rounds": 3, "eval_every": 2, "devices": 2, "options": FULL}
HIDDEN = {name: {"task": "digits_mlp:widths=6"} for name in ("fedma", "fot", "fedpara", "pfedpara", "heterofl")}  # what needs a hidden layer
HIDDEN |= {name: {"task": "digits_mlp:widths=6", "partition": "subset:60+vertical:6,overlap=0.5", "clients": None} for name in ("splitnn", "oneshot-vfl")}
CLOCKED = {"fedbuff": {"schedule": "buffered:2"}, "fedcompass": {"cohort": 6}, "fedfix": {"cohort": 6}}  # what six clients allow
LABELED = {name: {"partition": "public:60+dirichlet:0.3+semi:0.2"} for name in ("fedlabel", "fedsem", "fixmatch-fl")}  # some examples have no label
QUADRATIC = {name: {"task": "regression_linreg:dim=3,size=10", "partition": "natural", "clients": None, "cohort": cohort}
             for name, cohort in (("rerce-fed", 3), ("rerce-fed-clu", 3), ("netlasso", 20))}  # all nodes of the last
GIVEN = HIDDEN | CLOCKED | LABELED | QUADRATIC


@pytest.fixture(autouse=True)
def programs(programs, monkeypatch):
    """Compiled programs are kept for the session."""
    jax.devices()
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))


@pytest.fixture
def compiled(monkeypatch):
    """The groups that were compiled, as they are."""
    seen, real = [], many._compile
    monkeypatch.setattr(many, "_compile", lambda group, say: seen.append(group) or real(group, say))
    return seen


def rows(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def alone(config):
    return rows(run.follow(run.prepare(config)).history)


def close(one, two, rel):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=rel)


def floats(name, factor):
    """The method's options that are floats, off their defaults by a factor at which they are in range, and no other."""
    factory = registry.catalog("method")[name]
    off = {o.name: factor * o.default for o in spec.options(factory) if isinstance(o.default, float) and o.default}
    return many.typed(name, FULL | off)


def factory_of(name):
    return registry.catalog("method")[name]


@pytest.mark.full
@pytest.mark.parametrize("name", registry.catalog("method"))
def test_a_run_among_many_is_the_run_alone(name):
    near, off, said = floats(name, 0.95), floats(name, 0.9), []
    info = factory_of(name).info
    whole = {"cohort": SMALL["clients"]} if "participation" in info.refuses or info.schedule.startswith("gossip") else {}
    cells = [configs.make({**SMALL, **whole, **GIVEN.get(name, {}), "method": name, "options": options, "seed": seed}) for seed, options in ((0, near), (3, off), (5, off))]
    results = {at: trained for at, _, trained in many.each(cells, report=said.append)}
    assert any("side by side" in line for line in said)
    assert [results[at].config for at in range(3)] == cells and not any(results[at].broken for at in range(3))
    close(rows(results[1].history), alone(cells[1]), rel=2e-5)


@pytest.mark.full
def test_where_memory_is_short_runs_go_one_by_one_with_the_same_bits(monkeypatch):
    monkeypatch.setattr(many, "room", lambda: 1.0)
    said = []
    found = many.train(method="fedavg", seeds=(0, 4, 2**32 - 1), report=said.append, **SMALL)
    assert "1 side by side" in said[0] and "memory is short" in said[0]
    assert [rows(trained.history) for trained in found[1:]] == [alone(trained.config) for trained in found[1:]]


def test_seeds_and_floats_share_one_program_and_one_call(compiled):
    said = []
    found = many.train(method="fedavg", seeds=(1, 2), sweep={"lr": (0.1, 0.2), "epochs": (1, 2)}, report=said.append, **SMALL)
    assert [len(group.cells) for group in compiled] == [4, 4] and [group.names for group in compiled] == [["lr"]] * 2
    assert [line for line in said if "4 of 4 runs" in line] == said[1::2]
    assert [(t.config.options["lr"], t.config.options["epochs"], t.config.seed) for t in found] == [
        (lr, epochs, seed) for lr in (0.1, 0.2) for epochs in (1, 2) for seed in (1, 2)]
    assert len({str(rows(t.history)) for t in found}) == 8 and len({t.history[0]["test_loss"] for t in found}) == 2


def test_fields_are_swept_too():
    cells = many.grid(configs.make(SMALL), (7,), {"cohort": ("2", 3), "lr": ("0.5",)})
    assert [(c.cohort, c.seed, c.options) for c in cells] == [(n, 7, FULL | {"lr": 0.5}) for n in (2, 3)]
    assert many.groups(cells) == [[0], [1]]


@pytest.mark.full
def test_options_that_python_reads_have_programs_of_their_own(compiled):
    @method(family="test", paper="none", year=2026)
    def hesitant(task, work, *, pull: float = 0.1, push: float = 1.0):
        """Moves only if it is pushed hard."""
        step = push if pull > 0.5 else 0.0

        def local(key, message, client, data):
            return Result({"model": jax.tree.map(lambda x: step + 0 * x, message["model"])}, 1.0)

        return Method(local, steps=work.steps)

    try:
        said = []
        found = many.train(method="hesitant", seeds=(0,), sweep={"pull": (0.0, 1.0), "push": (1.0, 2.0)}, report=said.append, **SMALL)
    finally:
        del registry._FACTORIES["hesitant"]
    assert [group.names for group in compiled] == [["push"], ["push"]] and said[0].startswith("pull of hesitant: Python code depends")
    moved = [t.history[0]["test_loss"] != t.history[-1]["test_loss"] for t in found]
    assert moved[0] == moved[1] and len({t.history[-1]["test_loss"] for t in found[:2]}) == 1


@pytest.mark.full
def test_a_run_that_breaks_off_disturbs_no_other():
    good, bad = many.train(method="fedavg", seeds=(0,), sweep={"lr": (0.1, 1e30)}, **{**SMALL, "task": "digits_mlp:widths=4"})
    assert bad.broken.startswith("round ") and "not finite" in bad.broken and len(bad.history) == 1
    assert not good.broken
    close(rows(good.history), alone(good.config), rel=1e-5)


def test_a_run_ends_where_its_target_is_reached():
    blank = np.zeros((3, 2, 1))
    rounds = {"loss": np.ones((3, 2)), "ids": blank, "mask": blank == 1, "finite": blank == 0, "sound": np.ones((3, 2), bool), "bytes_up": blank + 5, "bytes_down": blank + 7}
    record = Record(rounds, {"test_accuracy": np.array([0.1, 0.6, 0.9]), "test_loss": np.ones(3)})
    for target, ends in ((None, 4), (0.7, 4), (0.5, 2), (0.1, 0)):
        history = many.read(configs.make({"rounds": 4, "eval_every": 2, "target_accuracy": target}), record, 8.0, lambda rounds: 3 * len(rounds["loss"])).history
        assert [row["round"] for row in history] == list(range(0, ends + 1, 2)), target
        assert (history[-1]["bytes_up"], history[-1]["bytes_down"], history[-1]["seconds"]) == (5 * ends, 7 * ends, 2 * ends)
        assert history[-1]["flops"] == 3 * ends


@pytest.mark.full
def test_out_of_memory_halves_what_runs_at_once(monkeypatch):
    real, tried, said = many._compile, [], []

    def compile(group, say):
        tried.append((group.size, group.batch.width))
        if len(tried) < 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return real(group, say)

    monkeypatch.setattr(many, "_compile", compile)
    found = many.train(method="fedavg", seeds=range(4), report=said.append, **{**SMALL, "devices": 1})
    assert tried == [(4, 4), (4, 2), (4, 1), (2, 1)] and len({str(rows(t.history)) for t in found}) == 4
    assert sum("out of memory" in line for line in said) == 3 and "2 of 4" in said[-2] and "4 of 4" in said[-1]


@pytest.mark.parametrize("sweep, words", [
    ({"lrr": (1.0,)}, ("'fedavg' has no option 'lrr'", "did you mean 'lr'")),
    ({"lr": (-1.0,)}, ("'lr'", ">= 0")),
    ({"seed": (1,)}, ("no option 'seed'",)),
    ({"cohort": (0,)}, ("--cohort", ">= 1")),
])
def test_refused(sweep, words):
    with pytest.raises(ValueError) as error:
        many.train(method="fedavg", sweep=sweep, **SMALL)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_client_state_off_the_device_is_refused():
    with pytest.raises(ValueError, match="need --population=device and --client_state=device"):
        many.train(method="scaffold", client_state="host", **SMALL)


def test_groups_differ_in_what_is_static():
    base = configs.make({**SMALL, "options": {"lr": 0.1, "epochs": 1}})
    cells = [base, dataclasses.replace(base, seed=1), dataclasses.replace(base, options={"lr": 0.2, "epochs": 1}),
             dataclasses.replace(base, options={"lr": 0.1, "epochs": 2}), dataclasses.replace(base, method="fedprox")]
    assert many.groups(cells) == [[0, 1, 2], [3], [4]]
    assert many.groups(cells, ["lr"]) == [[0, 1], [2], [3], [4]]


def test_rates_that_decay_share_a_program_and_one_that_does_not_has_its_own():
    cells = many.grid(configs.make(SMALL), (0,), {"lr_decay": (0.9, 1.0, 0.8)})
    assert many.groups(cells) == [[0, 2], [1]]
    assert many.untraceable(many._prepare([cells[0], cells[2]], None, None, None)) == []
