"""What the sections of a report are made of: the runs and their groups, tables, curves and numbers as HTML."""
from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from fedjax_lab.metrics import comparison, svg

AXES = {**comparison.AXES, "seconds": "seconds of training", "flops": "operations"}


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
        alike = {k: v for k, v in run.settings.items() if k not in run.free and k != "seed"}
        found.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(run)
    names = list(dict.fromkeys(k for run in runs for k in run.settings))
    differ = [k for k in names if k != "seed" and k not in runs[0].free and len({text(members[0].settings.get(k)) for members in found.values()}) > 1]
    differ.sort(key=lambda k: k != "method")
    out = []
    for color, members in enumerate(found.values()):
        values = {k: members[0].settings.get(k) for k in differ}
        words = [text(v) if k == "method" else f"{k.removeprefix('set ')}={text(v)}" for k, v in values.items() if k in members[0].settings]
        out.append(Group(", ".join(words) or members[0].settings["method"], values, members, color))
    return out


def curve(found: Sequence[Group], column: str, axis: str) -> str:
    """A column of each group against another one of AXES, as its mean with a band of a standard deviation; nothing where no group has both."""
    lines = []
    for group in found:
        points = comparison.band([[r for r in rows if column in r and (axis == "megabytes" or axis in r)] for rows in group.histories], axis, column)
        if len(points):
            mean, std = points[:, 1], points[:, 2]
            band = np.column_stack([mean - std, mean + std]) if len(group.histories) > 1 else None
            lines.append(svg.Line(group.name, points[:, :2], group.color, band))
    words = "training loss of the clients of a round" if column == "train_loss" else comparison.words(column)
    return svg.chart(f"{words[0].upper()}{words[1:]}, against {AXES[axis]}", lines, AXES[axis], "") if lines else ""


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


def facts(items: Mapping[str, str], kind: str = "") -> str:
    """Names with their values, beside each other as far as there is room."""
    return "<dl>" + "".join(f'<div class="{kind}"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in items.items()) + "</dl>"


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


def number(values: Sequence[float]) -> str:
    """The mean, short; see svg.number."""
    mean = statistics.fmean(values) if values else math.nan
    return "-" if math.isnan(mean) else "infinite" if math.isinf(mean) else svg.number(mean)


def fixed(values: Sequence[float]) -> str:
    """The mean with three digits."""
    return f"{statistics.fmean(values):.3f}" if values else "-"


def size(value: float) -> str:
    """Bytes, or MB."""
    return "-" if math.isnan(value) else f"{value / 1e6:,.4g} MB" if value >= 1e5 else f"{value:,.4g} B"


def exact(value: Any) -> str:
    """A value of metrics.jsonl."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def text(value: Any) -> str:
    """A setting, "-" where there is none."""
    if value is None or value == "":
        return "-"
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value:g}" if isinstance(value, float) else str(value)


def swatch(group: Group) -> str:
    """A group's color and name."""
    return f'<span class="swatch {svg.kind(group.color)}"></span>{escape(group.name)}'


def key(found: Sequence[Group]) -> str:
    """Which color is which group, where there are several."""
    return f'<p class="key">{"".join(f"<span>{swatch(g)}</span>" for g in found)}</p>' if len(found) > 1 else ""


def grid(pictures: Iterable[str]) -> str:
    """Pictures beside each other as far as there is room."""
    shown = "".join(pictures)
    return f'<div class="grid">{shown}</div>' if shown else ""


__all__ = ["Group", "Ran", "command", "curve", "exact", "facts", "fixed", "grid", "groups", "key", "number", "size", "spread", "swatch", "table", "text"]
