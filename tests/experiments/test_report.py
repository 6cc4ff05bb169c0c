"""The page: whole without a network, well-formed, and with the numbers of the runs."""
from __future__ import annotations

import html.parser
import json
import re
import shutil

import jax
import numpy as np
import pytest

from experiments import report, series
from fedjax_lab import config as configs
from fedjax_lab import many, run, workdir
from fedjax_lab.metrics import ledgers, pieces, svg

SECTIONS = ["Result", "Configuration", "Partition", "Curves", "Clients", "Communication", "Computation", "Privacy", "System", "Numbers"]
VOID = {"meta", "br", "hr", "img", "input", "link"}
SETTINGS = {"task": "digits_logreg", "clients": 12, "cohort": 3, "rounds": 4, "eval_every": 2, "partition": "shards:2"}


class Page(html.parser.HTMLParser):
    """Every element opened is closed, in order; and what the elements say."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.open, self.tags, self.attributes, self.words, self.captions = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1:] == ["figcaption"]:
            self.captions.append(data)

    @property
    def text(self):
        return "\n".join(self.words)

    def self_contained(self):
        loads = [(tag, k, v) for tag, k, v in self.attributes if k in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")]
        assert all(v.startswith("#" if tag == "a" else "data:image/png;base64,") for tag, _, v in loads), loads
        assert not {"script", "link", "iframe", "object", "embed", "img", "video", "base"} & set(self.tags)
        assert not [v for _, k, v in self.attributes if k.startswith("on")]


def history(rounds, base, **more):
    rows = []
    for r in range(0, rounds + 1, 2):
        grown = base + r / 100
        spread = {f"client_test_accuracy_{k}": grown * s for k, s in
                  (("mean", 0.9), ("worst_decile", 0.4), ("std", 0.1), *((f"q{q}", 0.3 + q / 200) for q in range(0, 101, 10)))}
        rows.append({"round": r, "seconds": r / 7, "test_accuracy": grown, "test_loss": 2 - grown, **spread, **({"train_loss": 1.5 - grown} if r else {}),
                     "bytes_up": 1234 * r, "bytes_down": 4321 * r, "flops": 10**9 * r, **more})
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs as a comparison leaves them: two methods with two seeds, one of which broke off; and a run by itself."""
    jax.devices()
    top = tmp_path_factory.mktemp("runs")
    made = {}
    for method, options in (("fedavg", {}), ("fedprox", {"mu": 0.25})):
        for seed in (0, 1):
            config = configs.make({**SETTINGS, "method": method, "seed": seed, "options": options})
            made[method] = made.get(method) or run.prepare(config)
            broken = "round 3: loss is not finite <at> client 7" if (method, seed) == ("fedprox", 1) else ""
            rows = history(2 if broken else 4, {"fedavg": 0.11, "fedprox": 0.47}[method] + seed / 50)
            series.write(top / "three" / "runs" / f"{method}-seed{seed}", made[method]._replace(config=config), many.Trained(config, rows, broken))
    shutil.copytree(top / "three" / "runs" / "fedavg-seed0", top / "one")
    return top


@pytest.fixture
def made(program, tmp_path):
    def call(*argv):
        out = tmp_path / "page.html"
        status, said, err = program(report, f"--out={out}", *map(str, argv))
        return status, said, err, Page(out.read_text("utf-8")) if out.exists() else None

    return call


def shown(row):
    """The numbers of a row, as the page writes them."""
    return [str(v) if isinstance(v, int) else f"{v:.6g}" for v in row.values()]


def test_one_run(made, folders):
    status, said, _, found = made(folders / "one")
    assert status == 0 and said.count("\n") == 1 and "1 run, " in said
    found.self_contained()
    rows = workdir.history(str(folders / "one"))
    assert all(text in found.words for row in rows for text in shown(row))
    assert ledgers.NO_PRIVACY in found.text and "0.1500" in found.words  # the last accuracy, as a tile
    assert "What differs" not in found.text and jax.__version__ in found.words


def test_several_runs(made, folders):
    status, _, _, found = made(folders / "three")
    assert status == 0
    found.self_contained()
    for name in ("fedavg-seed0", "fedavg-seed1", "fedprox-seed0", "fedprox-seed1"):
        rows = workdir.history(str(folders / "three" / "runs" / name))
        assert f"{name}: {len(rows)} evaluations" in found.words
        assert all(text in found.words for row in rows for text in shown(row)), name
    assert "0.1600 ± 0.0141" in found.words  # fedavg's seeds, after the last round
    assert "2, 1 broke off" in found.words and any("not finite <at> client 7" in words for words in found.words)
    assert "fedprox, mu=0.25" in found.words and found.text.index("What differs") < found.text.index("What all share")
    assert any("mu 0.25" in words and "lr 0.1," in words for words in found.words)  # options, with defaults
    assert "4,936 B" in found.words and "1,234 B" in found.words  # bytes up in all and per round
    assert "4G" in found.words and "1G" in found.words  # operations in all and per round


def test_sections(made, folders):
    """The outline of the page, so that no part goes by accident."""
    found = made(folders / "three")[3]
    heads = [words for words in found.words if words in SECTIONS]
    assert heads == 2 * SECTIONS  # once to go to, once as a heading
    assert [re.sub(r"fedavg|fedprox, mu=0.25", "M", re.sub("up to .*", "up to", caption)) for caption in found.captions] == [
        "Labels of 12 clients: the fuller the color, the larger their share, up to",
        "How far the clients are from the whole (0: the same labels, 1: none in common)", "How much the clients have",
        *(f"Global model, central test set: accuracy, against {axis}" for axis in ("round", "MB up and down", "seconds of training")),
        "Global model, central test set: loss, against round", "Global model, clients' test sets: accuracy mean, against round",
        "Global model, clients' test sets: accuracy worst decile, against round", "Training loss of the clients of a round, against round",
        "Global model, clients' test sets: accuracy after the last round, clients in ascending order",
        *["M: accuracy of all clients, of the middle 80 % and 40 %, and the median"] * 2,
        "Global model, central test set: accuracy, against operations",
    ]


def test_flags_of_the_report(program, folders, tmp_path):
    out = tmp_path / "other.html"
    assert program(report, f"--out={out}", "--title=Two & <three>", str(folders / "one"))[0] == 0
    assert "<h1>Two &amp; &lt;three&gt;</h1>" in out.read_text("utf-8")
    assert program(report, f"--out={out}", str(folders / "one"))[0] == 0 and "<h1>fedavg on digits_logreg</h1>" in out.read_text("utf-8")


def test_a_run_is_shown_once(made, folders):
    again = made(folders / "three", folders / "three" / "runs" / "fedavg-seed0")[3]
    assert again.text == made(folders / "three")[3].text
    assert "4 runs" not in made(folders / "one", folders / "one")[1]


def broken(path, how):
    if how == "damaged row":
        (path / "metrics.jsonl").write_text("{}x\n{}\n")
    elif how == "no rows":
        (path / "metrics.jsonl").write_text("")
    elif how == "other rows":
        (path / "metrics.jsonl").write_text('{"round": 1}\n')
    elif how == "config":
        (path / "config.json").write_text("{}")
    elif how == "partition":
        (path / "partition.json").write_text("{")
    else:
        (path / how).unlink()


@pytest.mark.parametrize("how, said", [
    ("config.json", "holds no run"), ("metrics.jsonl", "metrics.jsonl is missing"), ("partition.json", "partition.json is missing"),
    ("damaged row", "line 1 of metrics.jsonl is damaged"), ("no rows", "no evaluation yet"), ("other rows", "no evaluation yet"),
    ("config", "config.json is not that of a run"), ("partition", "partition.json is damaged"),
])
def test_a_broken_folder_is_one_line(made, folders, tmp_path, how, said):
    shutil.copytree(folders / "one", tmp_path / "it")
    broken(tmp_path / "it", how)
    status, out, err, found = made(folders / "one", tmp_path / "it")
    assert (status, out, found) == (2, "", None) and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_refusals(program, folders, tmp_path):
    for argv, said in (((), "name one or more"), ((str(tmp_path),), "holds no run"), ((str(tmp_path / "nowhere"),), "holds no run"),
                       ((str(folders / "one"), f"--out={tmp_path}/no/page.html"), "cannot be written")):
        status, out, err = program(report, *argv)
        assert (status, out) == (2, "") and err.count("\n") == 1 and said in err


def test_an_older_run_without_ledger_and_picture(made, folders, tmp_path):
    path = tmp_path / "old"
    shutil.copytree(folders / "one", path)
    (path / "partition.npz").unlink()
    rows = [{k: v for k, v in row.items() if k != "flops" and "_q" not in k} for row in workdir.history(str(path))]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err, found = made(path)
    assert status == 0, err
    found.self_contained()
    assert "not recorded" in found.words and "Labels of" not in found.text


def test_privacy_is_shown_where_a_run_has_it(made, folders, tmp_path):
    path = tmp_path / "private"
    shutil.copytree(folders / "one", path)
    said = "epsilon at delta=1e-05 by RDP, Poisson cohorts of 3 of 12 clients"
    extended(path, lambda at: {"epsilon": 1.75 * at, "privacy": said})
    found = made(path)[3]
    assert "3.5" in found.words and said in found.words and "infinite" not in found.text
    assert "The run: epsilon, against round" in found.captions and coordinates_of(found, "The run: epsilon, against round") == 3
    both = made(path, folders / "three" / "runs" / "fedprox-seed0")[3]
    assert "fedprox, mu=0.25: no privacy mechanism: epsilon is infinite." in both.text
    extended(path, lambda at: {"epsilon": float("inf"), "privacy": "epsilon is infinite: c is bare"})
    found = made(path)[3]
    assert found.words.count("infinite") == 2 and "epsilon is infinite: c is bare" in found.words and "The run: epsilon, against round" not in found.captions


def test_the_schedule_is_shown_where_a_run_has_one(made, folders, tmp_path):
    assert "Schedule" not in made(folders / "one")[3].words
    clocked, gossip = (shutil.copytree(folders / "one", tmp_path / name) for name in ("clocked", "gossip"))
    extended(clocked, lambda at: {"time": 12.5 * at, "uploads": 30 * at, "rejected": 4 * at, "waiting": 1, "training": 2})
    extended(gossip, lambda at: {"consensus_distance": 0.375 * at})
    found = made(clocked)[3]
    assert {"25", "60", "8", "1", "2", "waiting at the end"} <= set(found.words) and "virtual time" in found.words
    assert {"The run: uploads, against virtual time", "Global model, central test set: accuracy, against virtual time"} <= set(found.captions)
    found = made(gossip)[3]
    assert "The run: consensus distance, against round" in found.captions and "0.75" in found.words and "virtual time" not in found.words


def extended(path, more):
    """Adds columns to the rows of a run, from their number."""
    rows = workdir.history(str(path))
    (path / "metrics.jsonl").write_text("".join(json.dumps({**row, **more(at)}) + "\n" for at, row in enumerate(rows)))


def coordinates_of(found, caption):
    """How many points the curve of this caption has."""
    picture = found.source[found.source.index(f'aria-label="{caption}"'):]
    return len(coordinates(picture)[0])


def test_the_command_hides_where_the_program_lies():
    assert pieces.command(["/home/somebody/lab/experiments/compare.py", "--methods=a,b", "--title=x y"]) == "python -m experiments.compare --methods=a,b '--title=x y'"


def coordinates(picture):
    return [[tuple(map(float, p.split(","))) for p in points.split()] for points in re.findall(r'<polyline[^>]* points="([^"]*)"', picture)]


def test_a_chart_is_to_scale():
    x, y = np.array([0.0, 5, 10]), np.array([1.0, 3, 2])
    (line,) = coordinates(svg.chart("c", [svg.Line("l", np.column_stack([x, y]))], "x", "y"))
    across, down = np.array(line).T
    assert (across - across[0]) / (across[-1] - across[0]) == pytest.approx([0, 0.5, 1], abs=0.01)
    assert (down[0] - down) / (down[0] - down[1]) == pytest.approx([0, 1, 0.5], abs=0.01) and down[1] < down[0]
    assert svg.TOP < down.min() < down.max() < svg.HEIGHT - svg.BOTTOM and svg.LEFT <= across.min() and across.max() <= svg.WIDTH


def test_values_that_are_no_numbers_are_left_out():
    points = np.array([(0, 1.0), (1, np.nan), (2, np.inf), (3, 2.0)])
    picture = svg.chart("c", [svg.Line("l", points)], "x", "y")
    assert len(coordinates(picture)[0]) == 2 and "nan" not in picture and "inf" not in picture


@pytest.mark.parametrize("low, high", [(0, 1), (0.1, 0.13), (-5, 7), (0, 1e7), (1e-4, 3e-4), (0.5, 0.5000001)])
def test_ticks_are_round_and_within(low, high):
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert np.ptp(np.diff(found)) < 1e-6 * (high - low) or len(found) == 2
