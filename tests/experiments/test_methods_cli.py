from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fedjax_lab import registry, spec
from fedjax_lab.methods.__main__ import main

KINDS = {"method", "wire", "aggregator", "server", "attack", "privacy", "model", "audit", "analytics"}


@pytest.fixture(scope="module")
def catalog():
    return registry.systems()


@pytest.fixture
def cards(capsys):
    assert main(["--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_json_is_the_registry(cards, catalog):
    assert [card["name"] for card in cards] == list(catalog)
    for card in cards:
        info = catalog[card["name"]].info
        assert list(card) == ["name", "kind", "family", "paper", "year", "summary", "options"]
        assert {k: card[k] for k in list(card)[:-1]} == {k: getattr(info, k) for k in list(card)[:-1]}
        assert card["kind"] in KINDS and card["paper"] and card["summary"] and 1980 < card["year"] < 2100


def test_options_are_those_that_the_factory_takes(cards, catalog):
    for card in cards:
        for option in card["options"]:
            assert list(option) == ["name", "type", "default", "help"] and option["help"] and option["type"]
        given = {o["name"]: o["default"] for o in card["options"] if o["default"] is not None}
        spec.bind(catalog[card["name"]], (), {k: v if isinstance(v, list) else str(v) for k, v in given.items()})
        own = {o.name for o in spec.options(catalog[card["name"]])}
        assert {o["name"] for o in card["options"]} == own
        assert card["kind"] != "method" or own >= {o.name for o in spec.options(registry.training)}


def test_table_has_a_line_for_each(capsys, catalog):
    assert main([]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    starts = [head.index(word) for word in ("name", "kind", "family", "year", "summary", "paper")]
    cut = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    infos = [factory.info for factory in catalog.values()]
    assert cut == [[i.name, i.kind, i.family, str(i.year), i.summary, i.paper] for i in infos]


@pytest.mark.parametrize("argument", ["--jsn", "--js", "fedavg"])
def test_bad_argument_is_one_line(capsys, argument):
    with pytest.raises(SystemExit, match="2"):
        main([argument])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and argument in err


def test_command():
    done = subprocess.run([sys.executable, "-m", "fedjax_lab.methods", "fedavg"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
