"""Gossip from the command line: graphs, rows, what is printed and refused, and many runs at once."""
from __future__ import annotations

import pytest

from fedjax_lab import config as configs
from fedjax_lab import many, run

GOSSIP = ("--method=dpsgd", "--set=lr=0.5", "--set=batch_size=full")
BASE = ("--task=digits_logreg", "--clients=8", "--rounds=4", "--eval_every=2", "--devices=1")


def column(done, name):
    return [row[name] for row in done.rows]


@pytest.mark.full
def test_the_graph_is_a_setting(job):
    done = {graph: job(*GOSSIP, *flag, base=BASE) for graph, flag in (("ring", ()), ("full", ("--graph=full",)), ("random", ("--graph=random:3",)))}
    apart = {graph: column(found, "consensus_distance")[-1] for graph, found in done.items()}
    assert apart["full"] < apart["random"] < apart["ring"]
    for graph, degree in (("ring", 2), ("full", 7)):
        assert column(done[graph], "bytes_up") == [rounds * 8 * degree * 2600 for rounds in (0, 2, 4)]
        assert column(done[graph], "bytes_down") == [0] * 3
    assert done["ring"].rows[-1]["test_accuracy"] > 0.5 and column(done["ring"], "consensus_distance")[0] == 0
    assert "gossip on graph ring, at most 2 neighbors, spectral gap 0.1953, steps 1" in done["ring"].out
    assert "nodes' models: mean squared distance to their average" in done["ring"].out and "consensus distance" in done["ring"].out


@pytest.mark.full
def test_a_global_method_runs_when_that_is_allowed(job):
    refused = job("--method=scaffold", "--schedule=gossip", base=BASE)
    assert refused.status == 2 and refused.err == (
        "error: --schedule=gossip: 'scaffold' was published for --schedule=sync; --allow_untested runs it all the same\n")
    done = job("--method=scaffold", "--schedule=gossip", "--graph=full", "--allow_untested", "--set=lr=0.05", base=BASE)
    full = job("--method=scaffold", "--cohort=8", "--set=lr=0.05", base=BASE)
    for name in ("test_loss", "test_accuracy", "client_test_accuracy_mean"):
        assert column(done, name) == pytest.approx(column(full, name), abs=1e-5)


@pytest.mark.full
def test_it_goes_on_in_the_middle_of_a_changing_graph(job):
    flags = (*GOSSIP, "--graph=random:3", "--participation=uniform+dropout:0.3")
    whole, cut = job(*flags, base=BASE), job(*flags, "--rounds=2", base=BASE)
    rest = job(*flags, f"--workdir={cut.path}", base=BASE)
    assert (whole.status, rest.status) == (0, 0) and "going on after round 2" in rest.out
    assert cut.rows == whole.rows


@pytest.mark.full
def test_many_runs_are_those_of_one(tmp_path):
    settings = {"method": "dfedsam-mgs", "task": "digits_logreg", "clients": 6, "rounds": 2, "eval_every": 2, "graph": "random:2", "devices": 1,
                "options": {"lr": 0.1, "epochs": 1}}
    found = many.train(seeds=(0, 1), sweep={"rho": (0.01, 0.5)}, **settings)
    assert len({one.history[-1]["test_loss"] for one in found}) == 4
    alone = run.train(**{**settings, "seed": 1, "options": {**settings["options"], "rho": 0.5}})
    for name in ("test_loss", "consensus_distance", "personal_client_test_accuracy_mean", "bytes_up"):
        assert found[3].history[-1][name] == pytest.approx(alone.history[-1][name], rel=1e-4), name


@pytest.mark.parametrize("flags, words", [
    (("--graph=ring", "--method=fedavg"), "--graph=ring: who talks to whom is for --schedule=gossip; this is sync"),
    (("--graph=rign",), "--graph=rign: unknown graph 'rign'; valid: erdos, exponential,"),
    (("--graph=erdos:0.05",), "--graph=erdos:0.05: the graph of 8 nodes falls into"),
    (("--cohort=3",), "--cohort=3: in gossip all 8 nodes are active; leave it out"),
    (("--schedule=gossip:steps=0",), "--schedule=gossip:steps=0: option 'steps' of 'gossip': '0' is not valid; expected int >= 1"),
    (("--schedule=gossip:order=before",), "expected one of after, beside"),
    (("--schedule=gossip:q=2",), "'gossip' has no option 'q'; valid: steps, order"),
    (("--population=host",), "gossip needs population and client_state on the device"),
    (("--wire_down=half",), "method 'dpsgd' has a wire on the way down, which gossip has not"),
    (("--method=fedlin", "--schedule=gossip", "--allow_untested"), "method 'fedlin' sends a 'model' that is no change of the one it gets; gossip cannot"),
    (("--method=fedamd", "--schedule=gossip", "--allow_untested"), "method 'fedamd' asks all clients at once, which gossip has not"),
    (("--schedule=sync",), "--schedule=sync: 'dpsgd' was published for --schedule=gossip"),
])
def test_refused(job, flags, words):
    done = job("--method=dpsgd", *flags, base=BASE)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err


def test_options_of_the_method_stay_where_the_flag_says_nothing():
    def steps(**more):
        config = configs.make({"method": "dfedsam-mgs", "task": "digits_logreg", "clients": 6, **more})
        return run.prepare(config).simulation.plan["gossip_steps"]

    assert [steps(), steps(schedule="gossip"), steps(schedule="gossip:2"), steps(schedule="gossip:order=after")] == [4, 4, 2, 4]
