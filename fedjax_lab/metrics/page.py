"""A report of runs as one HTML page that needs nothing beside it: no script, no network; light and dark, for a laptop and for a phone.

    html = page("Three methods", [pieces.Ran(...), ...])

Runs that differ in nothing but the seed are one line of every table, with their mean, and one curve with a band of a standard deviation.
"""
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from fedjax_lab.metrics import comparison, ledgers, pieces, svg
from fedjax_lab.metrics.style import STYLE

QUANTILES = range(0, 101, 10)
ROWS = {"": "global model, clients' test sets", "personal_": "personal models, clients' own test sets"}


def page(title: str, runs: Sequence[pieces.Ran]) -> str:
    """The whole file."""
    found = pieces.groups(runs)
    column = "test_accuracy" if all("test_accuracy" in run.rows[-1] for run in runs if run.rows) else "test_loss"
    parts = {"Result": result(found, column), "Configuration": configuration(found), "Partition": partition(runs), "Curves": curves(found, column),
             "Clients": clients(found), "Communication": ledgers.communication(found), "Computation": ledgers.computation(found, column),
             "Schedule": ledgers.schedule(found), "Privacy": ledgers.privacy(found), "System": system(runs), "Numbers": numbers(runs)}
    body = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{inside}</section>' for name, inside in parts.items() if inside)
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name, inside in parts.items() if inside)
    seeds = len({run.settings["seed"] for run in runs})
    what = f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(found)} configuration{'s' * (len(found) > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    tasks = ", ".join(dict.fromkeys(run.settings["task"] for run in runs))
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
            f"<header><h1>{escape(title)}</h1><p>{escape(tasks)} · {what}</p><nav>{links}</nav></header><main>{body}</main></body></html>\n")


def result(found: Sequence[pieces.Group], column: str) -> str:
    """The key numbers: as tiles of a single configuration, else a line for each."""
    pick = max if comparison.higher_is_better(column) else min
    worst = next((f"client_test_{m}_worst_decile" for m in ("accuracy", "loss") if any(g.last(f"client_test_{m}_worst_decile") for g in found)), "")
    word = column.removeprefix("test_")
    entries: dict[str, Callable[[pieces.Group], str]] = {
        "runs": lambda g: f"{len(g.runs)}" + (f", {len(g.runs) - len(g.histories)} broke off" if len(g.histories) < len(g.runs) else ""),
        f"{word}, last": lambda g: pieces.spread(g.last(column)),
        f"{word}, best": lambda g: pieces.spread([pick(row[column] for row in rows) for rows in g.histories]),
        "worst tenth of the clients": lambda g: pieces.spread(g.last(worst)),
        "rounds": lambda g: pieces.number(g.last("round")), "MB up and down": lambda g: pieces.number([comparison.traffic(rows[-1]) / 1e6 for rows in g.histories]),
        "operations": lambda g: pieces.number(g.last("flops")),
        **{words: lambda g, name=name: pieces.number(g.last(name)) for name, words in comparison.LEDGER.items()
           if name not in ("uploads", "rejected") and any(g.last(name) for g in found)},
        "seconds": lambda g: pieces.number(g.last("seconds")),
    }
    if not worst:
        del entries["worst tenth of the clients"]
    if len(found) == 1:
        tiles = "".join(f"<div><b>{escape(f(found[0]))}</b><span>{escape(name)}</span></div>" for name, f in entries.items() if name != "runs")
        said = "".join(f'<p class="broken">{escape(run.name)}: {escape(run.broken)}</p>' for run in found[0].runs if run.broken)
        return f'<div class="tiles">{tiles}</div>{said}<p class="note">{_legend(found[0], column)}</p>'
    lines = [[pieces.swatch(g), *(escape(f(g)) for f in entries.values())] for g in found]
    said = "".join(f'<p class="broken">{escape(run.name)}: {escape(run.broken)}</p>' for g in found for run in g.runs if run.broken)
    return pieces.table(["", *entries], lines) + said + f'<p class="note">{_legend(found[0], column)}</p>'


def _legend(group: pieces.Group, column: str) -> str:
    seeds = "Mean ± standard deviation over the seeds. " if len(group.runs) > 1 else ""
    words = comparison.words(column)
    return (f"{escape(words[0].upper() + words[1:])}. {seeds}Worst tenth: mean over the tenth of the clients whom the global model serves worst. Operations: "
            "floating-point operations of the clients' local training, counted from the program. Seconds: compilation apart.")


def configuration(found: Sequence[pieces.Group]) -> str:
    """What differs between the runs, then what they share, then what does not change the result."""
    runs = [run for group in found for run in group.runs]
    out = ""
    if len(runs) > 1:
        names = [*found[0].values, *(["seed"] if len({run.settings["seed"] for run in runs}) > 1 else [])]
        free = [k for k in sorted(runs[0].free) if len({pieces.text(run.settings.get(k)) for run in runs}) > 1]
        lines = [[pieces.swatch(g), *(escape(", ".join(dict.fromkeys(pieces.text(run.settings.get(k)) for run in g.runs))) for k in [*names, *free])] for g in found]
        out = "<h3>What differs</h3>" + pieces.table(["", *(k.removeprefix("set ") for k in [*names, *free])], lines, numbers=False)
    first = {k: pieces.text(v) for k, v in runs[0].settings.items()}
    shared = {k: v for k, v in first.items() if all(pieces.text(run.settings.get(k)) == v for run in runs)}
    said = {k: v for k, v in shared.items() if v != "-" and not k.startswith("set ")}
    options: dict[str, dict[str, dict[str, None]]] = {}  # method, option, its values in order
    for run in runs:
        for k, v in run.options.items():
            options.setdefault(run.settings["method"], {}).setdefault(k, {})[pieces.text(v)] = None
    out += f"<h3>{'What all share' if len(runs) > 1 else 'Settings'}</h3>" + pieces.facts({k: v for k, v in said.items() if k not in runs[0].free})
    out += "<h3>Options of the methods, defaults included</h3>"
    out += pieces.facts({name: ", ".join(f"{k} {' or '.join(values)}" for k, values in own.items()) for name, own in options.items()}, "wide")
    return out + f"<details><summary>Settings that do not change the result</summary>{pieces.facts({k: v for k, v in said.items() if k in runs[0].free})}</details>"


def partition(runs: Sequence[pieces.Ran]) -> str:
    """Facts and pictures of each partition that the runs were on."""
    different: dict[str, list[pieces.Ran]] = {}
    for run in runs:
        different.setdefault(str(run.facts.get("sha256_partition", run.facts)), []).append(run)
    return "".join(_partition(members[0], members if len(different) > 1 else []) for members in different.values())


def _partition(run: pieces.Ran, members: Sequence[pieces.Ran]) -> str:
    facts, shown = run.facts, run.picture
    keys = ("source", "partition", "clients", "examples", "test", "entropy", "total_variation")
    words = {"test": "test examples of the clients", "entropy": "mean entropy of a client's labels, nats", "total_variation": "mean distance to all labels"}
    items = {words.get(k, k): f"{facts[k]:.4g}" if isinstance(facts[k], float) else f"{facts[k]:,}" if isinstance(facts[k], int) else str(facts[k])
             for k in keys if k in facts}
    if "size" in facts:
        items["examples of a client"] = ", ".join(f"{k} {v:g}" for k, v in facts["size"].items())
    out = pieces.facts(items)
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
    return head + out + pieces.grid(pictures)


def curves(found: Sequence[pieces.Group], column: str) -> str:
    """The main metric against everything that a run costs, the others against rounds."""
    out = [pieces.curve(found, column, axis) for axis in ("round", "megabytes", "seconds", "time")]
    spread = "client_test_accuracy" if any(g.last("client_test_accuracy_mean") for g in found) else "client_test_loss"
    others = ["test_loss", f"{spread}_mean", f"{spread}_worst_decile", f"personal_{spread}_mean", f"personal_{spread}_worst_decile", "train_loss"]
    out += [pieces.curve(found, other, "round") for other in others if other != column]
    return pieces.key(found) + pieces.grid(out)


def clients(found: Sequence[pieces.Group]) -> str:
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
            body = [[pieces.swatch(g), *(escape(pieces.fixed(g.last(c))) for c in columns)] for g in having]
            out += f"<h3>{escape(words[0].upper() + words[1:])}</h3>" + (pieces.key(having) if len(lines) > 1 else "") + pieces.grid(pictures) + pieces.table(["", *shown], body)
    note = ("Quantiles: so many percent of the clients have at most this; the value of the nearest client, with several seeds the mean of theirs. "
            "Worst tenth: the mean over it. Clients count alike, however much data they have.")
    return out and out + f'<p class="note">{note}</p>'


def _quantiles(group: pieces.Group, name: str) -> np.ndarray:
    return np.array([(q, statistics.fmean(group.last(f"{name}_q{q}"))) for q in QUANTILES])


def _fan(group: pieces.Group, name: str, metric: str) -> str:
    """Quantiles over the rounds: the median, and bands of the middle 40, 80 and 100 % of the clients."""
    histories = [[row for row in rows if f"{name}_q0" in row] for rows in group.histories]
    steps = list(zip(*histories))
    rounds = np.array([rows[0]["round"] for rows in steps], float)
    at = {q: np.array([statistics.fmean(row[f"{name}_q{q}"] for row in rows) for rows in steps]) for q in QUANTILES}
    lines = [svg.Line(f"{group.name}: median", np.column_stack([rounds, at[50]]), group.color, np.column_stack([at[50 - w], at[50 + w]]), thin=w < 50)
             for w in (50, 40, 20)]
    return svg.chart(f"{group.name}: {metric} of all clients, of the middle 80 % and 40 %, and the median", lines, "round", metric)


def system(runs: Sequence[pieces.Ran]) -> str:
    """Versions, devices and commands."""
    keys = list(dict.fromkeys(k for run in runs for k in run.versions))
    places = ("platform", "devices", "chunk", "lanes", "parameters", "memory_bytes")
    facts = {k.replace("_", " "): dict.fromkeys(pieces.text(run.versions.get(k)) for run in runs) for k in keys}
    facts |= {k.replace("_", " "): dict.fromkeys(pieces.text(run.plan.get(k)) for run in runs) for k in places if any(k in run.plan for run in runs)}
    commands = dict.fromkeys(run.command for run in runs if run.command)
    return pieces.facts({k: ", ".join(v) for k, v in facts.items()}) + "".join(f"<pre>{escape(command)}</pre>" for command in commands)


def numbers(runs: Sequence[pieces.Ran]) -> str:
    """Every evaluation of every run, to unfold."""
    out = ""
    for run in runs:
        columns = list(dict.fromkeys(k for row in run.rows for k in row))
        lines = [[pieces.exact(row.get(c)) for c in columns] for row in run.rows]
        out += f"<details><summary>{escape(run.name)}: {len(run.rows)} evaluations</summary>{pieces.table(columns, lines)}</details>"
    return out


__all__ = ["page"]