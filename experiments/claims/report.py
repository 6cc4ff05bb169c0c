"""CLAIMS.json, one object per claim, and CLAIMS.md made from it."""
from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parents[1]
Entry = Mapping[str, Any]
HEAD = """# Measured claims

Written by `python -m experiments.claims` from CLAIMS.json; not by hand. Every row compares a method with a baseline on the same clients, cohorts
and seeds. Rates are chosen for both sides from one grid, by the same metric, on other seeds; a rate that is fixed stands beside its method.
A claim that did not show stays as it came out.
"""


def read(folder: pathlib.Path = FOLDER) -> list[dict[str, Any]]:
    """The rows of CLAIMS.json; none where there is no file."""
    path = folder / "CLAIMS.json"
    return json.loads(path.read_text()) if path.exists() else []


def write(rows: Sequence[Entry], notes: Mapping[str, str], folder: pathlib.Path = FOLDER) -> None:
    """Puts rows into CLAIMS.json in place of those of their names, and writes CLAIMS.md anew.

    Args:
      rows: of measure.record, any number.
      notes: of all claims by name, in order; rows of other names are dropped.
      folder: where the two files are.
    """
    known = {row["claim"]: row for row in (*read(folder), *map(plain, rows))}
    kept = [{**known[name], "note": note} for name, note in notes.items() if name in known]
    _replace(folder / "CLAIMS.json", "[\n" + ",\n".join(map(_object, kept)) + "\n]\n")
    _replace(folder / "CLAIMS.md", table(kept))


def _object(row: Entry) -> str:
    """One field a line."""
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in row.items()) + "\n}"


def plain(value: Any) -> Any:
    """The same, ready for JSON: what is not finite becomes null, floats keep six digits."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def table(rows: Sequence[Entry]) -> str:
    """CLAIMS.md."""
    shown = sum(row["shown"] for row in rows)
    lines = [HEAD, f"{shown} of {len(rows)} claims show.", "", "| claim | baseline | metric | expected | method | baseline's | gain | shown |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row["claim"], _rated(row, "baseline"), row["metric"], row["expected"], *numbers(row), "yes" if row["shown"] else "**no**")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", "## Scenarios, rates and notes", "", *map(_detail, rows)]) + "\n"


def numbers(row: Entry) -> tuple[str, str, str]:
    """Measured, baseline and gain, with the range over the seeds."""
    sides = [f"{number(row[key])} ({number(min(v))} to {number(max(v))})" if None not in (v := row["per_seed"][side]) else number(row[key])
             for key, side in (("measured", "method"), ("baseline_measured", "baseline"))]
    return *sides, number(row["gain"])


def number(value: float | None) -> str:
    """Three digits; what is not finite did not get there."""
    if value is None or not math.isfinite(value):
        return "never"
    return f"{value:.1f}" if 10 <= abs(value) < 1e4 else f"{value:.3g}"


def _rated(row: Entry, side: str) -> str:
    options = ", ".join(f"{k}={v}" for k, v in row["options"][side].items() if k not in row["shared"])
    return f"{row[side]} ({options})" if options else row[side]


def _detail(row: Entry) -> str:
    rates = "" if row["tuning"] else ", at the card's rates"
    parts = [f"- **{row['claim']}**: {row['scenario']}; {len(row['seeds'])} seeds; {_rated(row, 'method')} against {_rated(row, 'baseline')}{rates}."]
    parts += [f"Reduced from {row['reduced']}."] if row["reduced"] else []
    edges = {side: t["at_edge"] for side, t in row["tuning"].items() if t["at_edge"]}
    parts += [f"The {side}'s best {', '.join(options)} is at the end of the extended grid." for side, options in edges.items()]
    return " ".join(parts + ([row["note"]] if row["note"] else []))


def _replace(path: pathlib.Path, text: str) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)
