"""A report of runs as one HTML page that needs nothing beside it: no script, no network; light and dark, for a laptop and for a phone.

    html = page("Three methods", [Ran(...), ...])

Runs that differ in nothing but the seed are one line of every table, with their mean, and one curve with a band of a standard deviation.
"""
from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.metrics import comparison, svg
from fedjax_lab.metrics.style import STYLE

AXES = {**comparison.AXES, "seconds": "seconds of training", "flops": "operations"}
QUANTILES = range(0, 101, 10)
ROWS = {"": "global model, clients' test sets", "personal_": "personal models, clients' own test sets"}
NO_PRIVACY = "No privacy mechanism: epsilon is infinite."


class Ran(NamedTuple):
    """A run as it lies in its folder.

    name: of the folder.  settings: the whole configuration, options of the method as `set NAME`;  free: names of settings that do not
    change the result.  rows: of metrics.jsonl.  broken: why it broke off, or "".  facts: of partition.json.  picture: arrays of
    partition.npz, {} where there is none.  options: of the method, defaults too.  plan, versions: as config.json has them.  command: as it was typed, or "".
    """

    name: str
    settings: Mapping[str, Any]
    free: frozenset[str]
    rows: Sequence[Mapping[str, float]]
    broken: str
    facts: Mapping[str, Any]
    picture: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str


class Group(NamedTuple):
    """Runs of one configuration with several seeds. values: {setting that differs between groups: value}."""

    name: str
    values: Mapping[str, Any]
    runs: Sequence[Ran]
    color: int

    @property
    def histories(self) -> list[Sequence[Mapping[str, float]]]:
        """The rows of the runs that did not break off."""
        return [run.rows for run in self.runs if run.rows and not run.broken]

    def last(self, column: str) -> list[float]:
        """The column after the last round of each of these."""
        return [rows[-1][column] for rows in self.histories if column in rows[-1]]


def groups(runs: Sequence[Ran]) -> list[Group]:
    """The runs, those together that differ in the seed only, under the names of what tells them apart."""
    found: dict[str, list[Ran]] = {}
    for run in runs:
        key = {k: v for k, v in run.settings.items() if k not in run.free and k != "seed"}
        found.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(run)
    names = list(dict.fromkeys(k for run in runs for k in run.settings))
    differ = [k for k in names if k != "seed" and k not in runs[0].free and len({_text(members[0].settings.get(k)) for members in found.values()}) > 1]
    differ.sort(key=lambda k: k != "method")
    out = []
    for color, members in enumerate(found.values()):
        values = {k: members[0].settings.get(k) for k in differ}
        words = [_text(v) if k == "method" else f"{k.removeprefix('set ')}={_text(v)}" for k, v in values.items() if k in members[0].settings]
        out.append(Group(", ".join(words) or members[0].settings["method"], values, members, color))
    return out


def page(title: str, runs: Sequence[Ran]) -> str:
    """The whole file."""
    found = groups(runs)
    column = "test_accuracy" if all("test_accuracy" in run.rows[-1] for run in runs if run.rows) else "test_loss"
    parts = {"Result": result(found, column), "Configuration": configuration(found), "Partition": partition(runs), "Curves": curves(found, column),
             "Clients": clients(found), "Communication": communication(found), "Computation": computation(found, column), "Privacy": privacy(found),
             "System": system(runs), "Numbers": numbers(runs)}
    body = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{inside}</section>' for name, inside in parts.items() if inside)
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name, inside in parts.items() if inside)
    seeds = len({run.settings["seed"] for run in runs})
    what = f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(found)} configuration{'s' * (len(found) > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    tasks = ", ".join(dict.fromkeys(run.settings["task"] for run in runs))
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
            f"<header><h1>{escape(title)}</h1><p>{escape(tasks)} · {what}</p><nav>{links}</nav></header><main>{body}</main></body></html>\n")


def result(found: Sequence[Group], column: str) -> str:
    """The key numbers: as tiles of a single configuration, else a line for each."""
    pick = max if comparison.higher_is_better(column) else min
    worst = next((f"client_test_{m}_worst_decile" for m in ("accuracy", "loss") if any(g.last(f"client_test_{m}_worst_decile") for g in found)), "")
    word = column.removeprefix("test_")
    entries: dict[str, Callable[[Group], str]] = {
        "runs": lambda g: f"{len(g.runs)}" + (f", {len(g.runs) - len(g.histories)} broke off" if len(g.histories) < len(g.runs) else ""),
        f"{word}, last": lambda g: spread(g.last(column)),
        f"{word}, best": lambda g: spread([pick(row[column] for row in rows) for rows in g.histories]),
        "worst tenth of the clients": lambda g: spread(g.last(worst)),
        "rounds": lambda g: _number(g.last("round")), "MB up and down": lambda g: _number([comparison.traffic(rows[-1]) / 1e6 for rows in g.histories]),
        "operations": lambda g: _number(g.last("flops")), "seconds": lambda g: _number(g.last("seconds")),
    }
    if not worst:
        del entries["worst tenth of the clients"]
    if len(found) == 1:
        tiles = "".join(f"<div><b>{escape(f(found[0]))}</b><span>{escape(name)}</span></div>" for name, f in entries.items() if name != "runs")
        said = "".join(f'<p class="broken">{escape(run.name)}: {escape(run.broken)}</p>' for run in found[0].runs if run.broken)
        return f'<div class="tiles">{tiles}</div>{said}<p class="note">{_legend(found[0], column)}</p>'
    lines = [[_swatch(g), *(escape(f(g)) for f in entries.values())] for g in found]
    said = "".join(f'<p class="broken">{escape(run.name)}: {escape(run.broken)}</p>' for g in found for run in g.runs if run.broken)
    return table(["", *entries], lines) + said + f'<p class="note">{_legend(found[0], column)}</p>'


def _legend(group: Group, column: str) -> str:
    seeds = "Mean ± standard deviation over the seeds. " if len(group.runs) > 1 else ""
    words = comparison.words(column)
    return (f"{escape(words[0].upper() + words[1:])}. {seeds}Worst tenth: mean over the tenth of the clients whom the global model serves worst. Operations: "
            "floating-point operations of the clients' local training, counted from the program. Seconds: compilation apart.")


def configuration(found: Sequence[Group]) -> str:
    """What differs between the runs, then what they share, then what does not change the result."""
    runs = [run for group in found for run in group.runs]
    out = ""
    if len(runs) > 1:
        names = [*found[0].values, *(["seed"] if len({run.settings["seed"] for run in runs}) > 1 else [])]
        free = [k for k in sorted(runs[0].free) if len({_text(run.settings.get(k)) for run in runs}) > 1]
        lines = [[_swatch(g), *(escape(", ".join(dict.fromkeys(_text(run.settings.get(k)) for run in g.runs))) for k in [*names, *free])] for g in found]
        out = "<h3>What differs</h3>" + table(["", *(k.removeprefix("set ") for k in [*names, *free])], lines, numbers=False)
    first = {k: _text(v) for k, v in runs[0].settings.items()}
    shared = {k: v for k, v in first.items() if all(_text(run.settings.get(k)) == v for run in runs)}
    said = {k: v for k, v in shared.items() if v != "-" and not k.startswith("set ")}
    options: dict[str, dict[str, dict[str, None]]] = {}  # method, option, its values in order
    for run in runs:
        for k, v in run.options.items():
            options.setdefault(run.settings["method"], {}).setdefault(k, {})[_text(v)] = None
    out += f"<h3>{'What all share' if len(runs) > 1 else 'Settings'}</h3>" + _facts({k: v for k, v in said.items() if k not in runs[0].free})
    out += "<h3>Options of the methods, defaults included</h3>" 
    out += _facts({name: ", ".join(f"{k} {' or '.join(values)}" for k, values in own.items()) for name, own in options.items()}, "wide")
    return out + f"<details><summary>Settings that do not change the result</summary>{_facts({k: v for k, v in said.items() if k in runs[0].free})}</details>"


def _facts(items: Mapping[str, str], kind: str = "") -> str:
    return "<dl>" + "".join(f'<div class="{kind}"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in items.items()) + "</dl>"


def partition(runs: Sequence[Ran]) -> str:
    """Facts and pictures of each partition that the runs were on."""
    different: dict[str, list[Ran]] = {}
    for run in runs:
        different.setdefault(str(run.facts.get("sha256_partition", run.facts)), []).append(run)
    return "".join(_partition(members[0], members if len(different) > 1 else []) for members in different.values())


def _partition(run: Ran, members: Sequence[Ran]) -> str:
    facts, shown = run.facts, run.picture
    keys = ("source", "partition", "clients", "examples", "test", "entropy", "total_variation")
    words = {"test": "test examples of the clients", "entropy": "mean entropy of a client's labels, nats", "total_variation": "mean distance to all labels"}
    items = {words.get(k, k): f"{facts[k]:.4g}" if isinstance(facts[k], float) else f"{facts[k]:,}" if isinstance(facts[k], int) else str(facts[k])
             for k in keys if k in facts}
    if "size" in facts:
        items["examples of a client"] = ", ".join(f"{k} {v:g}" for k, v in facts["size"].items())
    out = _facts(items)
    pictures = []
    if "shares" in shown:
        label, names = facts.get("labels", "label"), facts.get("label_names") or range(shown["shares"].shape[1])
        top = float(np.nanmax(shown["shares"], initial=0))
        pictures += [svg.heat_map(f"Labels of {len(shown['clients'])} clients: the fuller the color, the larger their share, up to {top:.2g}", shown["shares"],
                                  shown["clients"], names, label, "client")]
        distance = shown["distance"][np.isfinite(shown["distance"])]
        if len(distance):
            heights, edges = np.histogram(distance, 20, (0, 1))
            pictures += [svg.bars("How far the clients are from the whole (0: the same labels, 1: none in common)", heights, edges, "total variation", "clients")]
    if "heights" in shown:
        pictures += [svg.bars("How much the clients have", shown["heights"], shown["edges"], "nodes" if "nodes" in facts else "training examples", "clients")]
    head = f"<h3>{escape(', '.join(dict.fromkeys(m.name for m in members)))}</h3>" if members else ""
    return head + out + _grid(pictures)


def curves(found: Sequence[Group], column: str) -> str:
    """The main metric against everything that a run costs, the others against rounds."""
    out = [_curves(found, column, axis) for axis in ("round", "megabytes", "seconds", "virtual_time")]
    spread = "client_test_accuracy" if any(g.last("client_test_accuracy_mean") for g in found) else "client_test_loss"
    others = ["test_loss", f"{spread}_mean", f"{spread}_worst_decile", f"personal_{spread}_mean", f"personal_{spread}_worst_decile", "train_loss"]
    out += [_curves(found, other, "round") for other in others if other != column]
    return _key(found) + _grid(out)


def _curves(found: Sequence[Group], column: str, axis: str) -> str:
    lines = []
    for group in found:
        points = comparison.band([[r for r in rows if column in r and (axis == "megabytes" or axis in r)] for rows in group.histories], axis, column)
        if len(points):
            mean, std = points[:, 1], points[:, 2]
            band = np.column_stack([mean - std, mean + std]) if len(group.histories) > 1 else None
            lines.append(svg.Line(group.name, points[:, :2], group.color, band))
    words = "training loss of the clients of a round" if column == "train_loss" else comparison.words(column)
    return svg.chart(f"{words[0].upper()}{words[1:]}, against {AXES[axis]}", lines, AXES[axis], "") if lines else ""


def clients(found: Sequence[Group]) -> str:
    """How the accuracy, or the loss, is spread over the clients: at the end as quantiles, and over the rounds."""
    out = ""
    for prefix, words in ROWS.items():
        for metric in ("accuracy", "loss"):
            name = f"{prefix}client_test_{metric}"
            having = [g for g in found if g.last(f"{name}_mean")]
            if not having:
                continue
            lines = [svg.Line(g.name, _quantiles(g, name), g.color) for g in having if g.last(f"{name}_q0")]
            pictures = [svg.chart(f"{words[0].upper()}{words[1:]}: {metric} after the last round, clients in ascending order", lines, "% of the clients", metric, (0, 100))] if lines else []
            pictures += [_fan(g, name, metric) for g in having if g.last(f"{name}_q0")]
            ends = ("worst", "best") if metric == "accuracy" else ("best", "worst")
            named = {0: f"{ends[0]} client", 50: "median", 100: f"{ends[1]} client"}
            shown = ["mean", "deviation", "worst tenth", *(named.get(q, f"{q} %") for q in QUANTILES)]
            columns = [f"{name}_mean", f"{name}_std", f"{name}_worst_decile", *(f"{name}_q{q}" for q in QUANTILES)]
            body = [[_swatch(g), *(escape(_fixed(g.last(c))) for c in columns)] for g in having]
            out += f"<h3>{escape(words[0].upper() + words[1:])}</h3>" + (_key(having) if len(lines) > 1 else "") + _grid(pictures) + table(["", *shown], body)
    note = ("Quantiles: so many percent of the clients have at most this; the value of the nearest client, with several seeds the mean of theirs. "
            "Worst tenth: the mean over it. Clients count alike, however much data they have.")
    return out and out + f'<p class="note">{note}</p>'


def _quantiles(group: Group, name: str) -> np.ndarray:
    return np.array([(q, statistics.fmean(group.last(f"{name}_q{q}"))) for q in QUANTILES])


def _fan(group: Group, name: str, metric: str) -> str:
    """Quantiles over the rounds: the median, and bands of the middle 40, 80 and 100 % of the clients."""
    histories = [[row for row in rows if f"{name}_q0" in row] for rows in group.histories]
    steps = list(zip(*histories))
    rounds = np.array([rows[0]["round"] for rows in steps], float)
    at = {q: np.array([statistics.fmean(row[f"{name}_q{q}"] for row in rows) for rows in steps]) for q in QUANTILES}
    lines = [svg.Line(f"{group.name}: median", np.column_stack([rounds, at[50]]), group.color, np.column_stack([at[50 - w], at[50 + w]]), thin=w < 50)
             for w in (50, 40, 20)]
    return svg.chart(f"{group.name}: {metric} of all clients, of the middle 80 % and 40 %, and the median", lines, "round", metric)


def communication(found: Sequence[Group]) -> str:
    """Bytes of both ways, per round and in all."""
    lines = []
    for g in found:
        up, down, rounds = (statistics.fmean(g.last(c) or [math.nan]) for c in ("bytes_up", "bytes_down", "round"))
        cells = [up / max(rounds, 1), down / max(rounds, 1), up, down, up + down]
        lines.append([_swatch(g), *(escape(_size(c)) for c in cells)])
    pictures = []
    for way in ("up", "down"):
        curve = [svg.Line(g.name, points, g.color) for g in found if len(points := _per_round(g, f"bytes_{way}"))]
        varies = any(np.ptp(line.points[:, 1]) > 1e-3 * line.points[:, 1].max() for line in curve)
        pictures += [svg.chart(f"MB {way} per round, all clients of the round together", curve, "round", "")] if varies else []
    head = ["", "up per round", "down per round", "up in all", "down in all", "both in all"]
    note = "Counted by the wires themselves, for the clients that started (down) and were heard (up). MB are 1,000,000 bytes."
    return table(head, lines) + _grid(pictures) + f'<p class="note">{note}</p>'


def _per_round(group: Group, column: str) -> np.ndarray:
    points = comparison.band(group.histories, "round", column)[:, :2] if group.histories else np.zeros((0, 2))
    if len(points) < 2:
        return np.zeros((0, 2))
    return np.column_stack([points[1:, 0], np.diff(points[:, 1]) / np.maximum(np.diff(points[:, 0]), 1) / 1e6])


def computation(found: Sequence[Group], column: str) -> str:
    """Operations and seconds."""
    known = [g for g in found if g.last("flops")]
    lines = []
    for g in found:
        flops, rounds, seconds = (statistics.fmean(g.last(c) or [math.nan]) for c in ("flops", "round", "seconds"))
        cells = [flops, flops / max(rounds, 1), seconds, seconds / max(rounds, 1), flops / seconds if seconds else math.nan]
        lines.append([_swatch(g), *("not recorded" if math.isnan(c) else svg.number(c) for c in cells)])
    head = ["", "operations", "per round", "seconds", "per round", "operations a second"]
    note = ("Floating-point operations of the clients' own local steps on their own examples, whatever the padding; evaluation, wires and the server are left "
            "out. Seconds are those of this run on its own machine, evaluation included; of runs trained side by side each one's share.")
    picture = _curves(known, column, "flops") if known else ""
    return table(head, lines) + _grid([picture]) + f'<p class="note">{note}</p>'


def privacy(found: Sequence[Group]) -> str:
    """Epsilon and what it rests on, of runs with a mechanism."""
    lines = [[_swatch(g), *(escape(_number(g.last(c))) for c in ("epsilon", "delta")), escape(_text(g.runs[0].plan.get("privacy")))] for g in found
             if g.last("epsilon")]
    without = [g.name for g in found if not g.last("epsilon")]
    if not lines:
        return f"<p>{NO_PRIVACY}</p>"
    rest = f"<p>{escape(', '.join(without))}: {NO_PRIVACY[0].lower()}{NO_PRIVACY[1:]}</p>" if without else ""
    return table(["", "epsilon", "delta", "assumptions"], lines) + rest


def system(runs: Sequence[Ran]) -> str:
    """Versions, devices and commands."""
    keys = list(dict.fromkeys(k for run in runs for k in run.versions))
    places = ("platform", "devices", "chunk", "lanes", "parameters", "memory_bytes")
    facts = {k.replace("_", " "): dict.fromkeys(_text(run.versions.get(k)) for run in runs) for k in keys}
    facts |= {k.replace("_", " "): dict.fromkeys(_text(run.plan.get(k)) for run in runs) for k in places if any(k in run.plan for run in runs)}
    commands = dict.fromkeys(run.command for run in runs if run.command)
    return _facts({k: ", ".join(v) for k, v in facts.items()}) + "".join(f"<pre>{escape(command)}</pre>" for command in commands)


def numbers(runs: Sequence[Ran]) -> str:
    """Every evaluation of every run, to unfold."""
    out = ""
    for run in runs:
        columns = list(dict.fromkeys(k for row in run.rows for k in row))
        lines = [[_exact(row.get(c)) for c in columns] for row in run.rows]
        out += f"<details><summary>{escape(run.name)}: {len(run.rows)} evaluations</summary>{table(columns, lines)}</details>"
    return out


def command(argv: Sequence[str]) -> str:
    """A command line as it was typed: python -m, where it was a module of experiments.

    >>> command(["/somewhere/experiments/train.py", "--method=fedavg", "--set=lr=0.1 "])
    "python -m experiments.train --method=fedavg '--set=lr=0.1 '"
    """
    if not argv:
        return ""
    first = str(argv[0]).replace("\\", "/").split("/")
    module = f"python -m {'.'.join(first[-2:]).removesuffix('.py')}" if len(first) > 1 and first[-2] == "experiments" else first[-1]
    return " ".join([module, *map(shlex.quote, argv[1:])])


def table(head: Iterable[str], lines: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table that scrolls by itself where the screen is narrow; cells of `lines` are HTML."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll"><table{" class=numbers" * numbers}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _number(values: Sequence[float]) -> str:
    return svg.number(statistics.fmean(values)) if values else "-"


def _fixed(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else "-"


def _size(value: float) -> str:
    return "-" if math.isnan(value) else f"{value / 1e6:,.4g} MB" if value >= 1e5 else f"{value:,.4g} B"


def _exact(value: Any) -> str:
    return "" if value is None else f"{value}" if isinstance(value, int) else f"{value:.6g}"


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value:g}" if isinstance(value, float) else str(value)


def _swatch(group: Group) -> str:
    return f'<span class="swatch {svg.kind(group.color)}"></span>{escape(group.name)}'


def _key(found: Sequence[Group]) -> str:
    return f'<p class="key">{"".join(f"<span>{_swatch(g)}</span>" for g in found)}</p>' if len(found) > 1 else ""


def _grid(pictures: Iterable[str]) -> str:
    shown = "".join(pictures)
    return f'<div class="grid">{shown}</div>' if shown else ""


__all__ = ["Group", "Ran", "command", "groups", "page"]
