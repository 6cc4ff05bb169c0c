"""Whatever evolves in a run is in its checkpoint: every schedule, sampler, wire, privacy mechanism and method goes on exactly."""
from __future__ import annotations

import jax
import pytest
from interruption import ONE_BY_ONE, go, outcome, stopped

from fedjax_lab import config as configs
from fedjax_lab import registry, resume, run

BASE = {"task": "digits_logreg", "clients": 8, "cohort": 3, "rounds": 5, "eval_every": 2, "devices": 1, "options": {"batch_size": "full"}}
GOSSIP = {"method": "dpsgd", "cohort": 8}
QUICK = {
    "events and earlier models": {"method": "fedbuff", "schedule": "buffered:2,law=lognormal"},
    "a clipping norm, and epsilon": {"privacy": "dp-fedavg:adaptive=true,bits_noise=0.5", "participation": "poisson"},
}
ALL_TRAIN = ("ticks", "compass")  # schedules that have all clients in training
VALUES = {"buffered": ":2", "stragglers": ":0.5,steps=0.5", "dropout": ":0.4", "poisson": "", "markov": ":arrive=0.3,leave=0.3", "bernoulli": ":0.5"}
AROUND = ("dropout", "stragglers")  # what befalls the clients of a scheme
GIVEN = "trace"  # needs a file
ATTACKED = {"attack": "alie:0.25", "aggregator": "nnm:0.25+median"}
SCENES = (  # tried in this order, until the method fits
    {}, {"cohort": 8}, {"schedule": "buffered:2"}, {"partition": "public:200+dirichlet:1"}, {"partition": "dirichlet:1+semi:0.3"},
    {"task": "regression_linreg:dim=3,size=10", "clients": None, "cohort": 4}, {"partition": "subset:100+vertical:3,overlap=0.3", "clients": None},
)


def named(name):
    return f"{name}{VALUES.get(name, '')}"


LONG = {
    "a changing graph, and who is there": {**GOSSIP, "graph": "random:3", "participation": "markov:arrive=0.3,leave=0.3"},
    "rows, memories and a server optimizer": {"method": "scaffold", "wire_up": "topk:0.1", "server": "adam:lr=0.01", "participation": "markov:arrive=0.3,leave=0.3"},
    **{f"schedule {name}": {"method": "fedbuff" if name == "buffered" else "fedavg", "schedule": named(name), "allow_untested": True,
                            "cohort": 8 if name in ALL_TRAIN else 3} for name in registry.catalog("schedule")},
    **{f"participation {name}": {"participation": f"uniform+{named(name)}" if name in AROUND else named(name)}
       for name in registry.catalog("participation") if name != GIVEN},
    **{f"wire {name}": {"wire_up": name} for name in registry.catalog("wire")},
    **{f"server {name}": {"server": name} for name in registry.catalog("server")},
    **{f"privacy {name}": {"privacy": name, **({"participation": "cyclic:shuffle=false"} if name == "dp-ftrl" else {})} for name in registry.catalog("privacy")},
    **{f"graph {name}": {**GOSSIP, "graph": name} for name in ("random:3", "one-peer", "erdos:0.6")},
    "attack": ATTACKED,
}


def exactly(path, prepared):
    """A run that is stopped twice, once between evaluations, and one that nothing happens to."""
    go(path / "whole", prepared)
    for until in (1, 3):
        stopped(path / "cut", prepared, until, **ONE_BY_ONE)
        assert resume.find(str(path / "cut"), prepared.config).clock == until
    go(path / "cut", prepared)
    rows, *bits = outcome(path / "cut")
    assert [rows, *bits] == list(outcome(path / "whole")) and [row["round"] for row in rows] == [0, 2, 4, 5]


@pytest.mark.parametrize("settings", [
    *(pytest.param(settings, id=name) for name, settings in QUICK.items()),
    *(pytest.param(settings, id=name, marks=pytest.mark.full) for name, settings in LONG.items()),
])
def test_a_part_goes_on_exactly(settings, tmp_path):
    jax.devices()
    exactly(tmp_path, run.prepare(configs.make({**BASE, **settings})))


def fitting(name):
    """A run of the method on the first scene that suits it."""
    refused = []
    for scene in SCENES:
        options = {} if name.startswith("rerce") else BASE["options"]
        try:
            return run.prepare(configs.make({**BASE, "task": "digits_mlp:widths=12", "method": name, "options": options, **scene}))
        except ValueError as error:
            refused.append(str(error))
    raise AssertionError(f"{name} fits no scene: {refused}")


@pytest.mark.full
@pytest.mark.parametrize("name", registry.catalog("method"))
def test_a_method_goes_on_exactly(name, tmp_path):
    jax.devices()
    exactly(tmp_path, fitting(name))
