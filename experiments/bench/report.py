"""PERFORMANCE.json, one object per measurement, and PERFORMANCE.md and .png made from it."""
from __future__ import annotations

import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench import scale

FOLDER = pathlib.Path(__file__).resolve().parents[1]
Row = Mapping[str, Any]
HEAD = """# Measured performance

Written by `python -m experiments.bench --write` and `--scale` from PERFORMANCE.json; not by hand. FedAvg on the workloads of
bench/workloads.py. The ratio is the library's time over that of a page of plain JAX (bench/reference.py) in turns with it, the median
of the pairs and their range, and the same for the processors' seconds, which hardly depend on who else uses the machine. The floors
are those of bench/floor.py at the rates measured in the same run. Numbers that missed their target stand as they came out, with the
reason.
"""
CPU_RATIO = {"w1": 1.1, "w3": 1.1, "w4": 1.1}  # the library's time over the plain round's, at most
CPU_FLOOR = {"w2": 1.4}  # over the arithmetic floor, at most
LOOP = 10  # the event loop's time over the library's, at least
REASONS = {
    ("w2", "cpu"): ("as long as the plain round takes: in a trace the second layer's three convolutions are 59% of the time; 21% is the layer of "
                    "1.6 million weights, whose products of ten rows wait for memory, since no cache of a core holds them"),
}
"""{(workload, platform): why its target is missed}, shown where it is."""


def read(folder: pathlib.Path = FOLDER) -> dict[str, list[dict[str, Any]]]:
    """{"workloads": rows of `measure`, "scale": points of `scale`, "arrivals": rows of `arrivals`}; empty where there is no file."""
    path = folder / "PERFORMANCE.json"
    return {"workloads": [], "scale": [], "arrivals": [], **(json.loads(path.read_text()) if path.exists() else {})}


def write(folder: pathlib.Path, rows: Sequence[Row], points: Sequence[Row] = (), arrivals: Sequence[Row] = ()) -> None:
    """Puts rows in place of those of their workload and devices, points in place of those of their axes, arrivals in place of those on their
    platform, and writes all files.

    Raises:
      ValueError: the folder cannot be written.
    """
    today = {"date": datetime.date.today().isoformat()}
    old = read(folder)
    kept = {_name(row): row for row in (*old["workloads"], *({**row, **today} for row in rows))}
    axes = {(p["axis"], p["platform"]) for p in points}
    rest = [p for p in old["scale"] if (p["axis"], p["platform"]) not in axes]
    clocked = {row["platform"]: row for row in (*old["arrivals"], *({**row, **today} for row in arrivals))}
    found = {"workloads": [kept[name] for name in sorted(kept)], "scale": [*rest, *({**p, **today} for p in points)],
             "arrivals": [*clocked.values()]}
    found = {part: [plain(row) for row in rows] for part, rows in found.items()}
    try:
        _replace(folder / "PERFORMANCE.json", "{\n" + ",\n".join(f'"{part}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
                                                                  for part, rows in found.items()) + "\n}\n")
        _replace(folder / "PERFORMANCE.md", document(found))
        if found["scale"]:
            scale.draw(found["scale"], folder / "PERFORMANCE.png")
    except OSError as error:
        raise ValueError(f"--out={folder}: cannot be written ({error.strerror})") from None


def _name(row: Row) -> tuple:
    return row["platform"] != "cpu", row["workload"], row["devices"], row["precision"]


def plain(value: Any) -> Any:
    """The same with six digits to a number."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def document(found: Mapping[str, Sequence[Row]]) -> str:
    """PERFORMANCE.md."""
    heads = ("workload", "on", "seconds a round", "plain JAX", "ratio", "of processor time", "Python loop", "its ratio",
             "arithmetic floor", "traffic floor", "fraction of the floor", "peak memory, MB", "date", "target")
    lines = [HEAD, *_table(heads, [_cells(row) for row in found["workloads"]])]
    lines += ["", *[f"- {row['workload']} on {_device(row)}: {_detail(row)}" for row in found["workloads"]]]
    if found["scale"]:
        lines += ["", "## Scale", "", "![Seconds a round and peak memory against size](PERFORMANCE.png)", "", *_scale(found["scale"])]
    if found["arrivals"]:
        lines += ["", "## Uploads on the virtual clock", "", *_arrivals(found["arrivals"])]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def _device(row: Row) -> str:
    return f"{row['devices']} x {row['device_kind']}" + (f", {row['precision']}" if row["precision"] != "default" else "")


def _cells(row: Row) -> list[str]:
    floors = [number(row["floor"][k]) if "floor" in row else "-" for k in ("arithmetic_seconds", "memory_seconds", "fraction")]
    return [row["workload"], _device(row), number(row["seconds_per_round"]), *_side(row.get("reference")), *_side(row.get("plain"))[:2], *floors,
            memory(row), row["date"], verdict(row)]


def _side(rival: Row | None) -> tuple[str, str, str]:
    if rival is None:
        return "-", "-", "-"
    ratio = f"{rival['ratio']:.2f} ({rival['ratio_least']:.2f} to {rival['ratio_most']:.2f})"
    return number(rival["seconds_per_round"]), ratio, f"{rival['processor_ratio']:.2f}"


def memory(row: Row) -> str:
    """The peak of the device's memory, or where that is the host's of the process."""
    return number(row.get("peak_device_mb", row["peak_rss_mb"]))


def verdict(row: Row) -> str:
    """Whether the row reached its target, with the reason where it did not."""
    if row["platform"] != "cpu":
        return "-"
    name, sides = row["workload"], []
    if name in CPU_RATIO and "reference" in row:
        sides.append((row["reference"]["ratio"], CPU_RATIO[name], "the plain JAX round"))
    if name in CPU_FLOOR and "floor" in row:
        sides.append((row["seconds_per_round"] / row["floor"]["arithmetic_seconds"], CPU_FLOOR[name], "the arithmetic floor"))
    words = [f"{value:.2f} times {what}, at most {most}: {'reached' if value <= most else '**missed**'}" for value, most, what in sides]
    missed = any(value > most for value, most, _ in sides)
    return "; ".join(words + ([REASONS[name, row["platform"]]] if missed and (name, row["platform"]) in REASONS else [])) or "-"


def _detail(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    text = (f"{row['clients']:,} clients, {row['cohort']:,} a round, {row['parameters']:,} parameters, chunk {row['chunk']}, "
            f"{row['lanes']} lanes; compiled in {number(row['compile_seconds'])} s; {versions}.")
    floor = row.get("floor")
    if floor:
        text += (f" {number(floor['gflop'])} GFLOP a round at {number(floor['sgemm_gflops'])} GFLOP/s; {number(floor['traffic_gb'])} GB of "
                 f"parameters at {number(floor['model_gb_per_second'])} GB/s, {number(floor['examples_gb'])} GB of examples at "
                 f"{number(floor['memory_gb_per_second'])} GB/s.")
    return text


def _scale(points: Sequence[Row]) -> list[str]:
    heads = ("axis", "model", "value", "seconds a round", "processor seconds a round", "start-up, seconds", "peak memory, MB", "on", "date")
    rows = [[p["axis"], p["series"], f"{p['value']:,}", *(number(p[f"{k}_per_round"]) for k in ("seconds", "processor_seconds")), number(p["startup_seconds"]),
             memory(p), _device(p), p["date"]] for p in points]
    shares = [f"- {model}, the same {scale.EXAMPLES:,} examples over 10 to 10,000 clients: the longest time of an epoch is "
              f"{scale.spread(points, 'clients', model, 'seconds_per_round'):.2f} times the shortest, of processor time "
              f"{scale.spread(points, 'clients', model, 'processor_seconds_per_round'):.2f} times."
              for model in dict.fromkeys(p["series"] for p in points if p["axis"] == "clients")]
    return [*_table(heads, rows), "", *shares]


def _arrivals(rows: Sequence[Row]) -> list[str]:
    heads = ("uploads", "in training", "buffer", "parameters", "seconds", "of which rolling out", "loop's seconds", "times as long", "of processor time",
             "peak memory, MB", "on", "date", "target")
    count = ("uploads", "in_training", "buffer", "parameters")
    cells = [[*(f"{r[k]:,}" for k in count), *(number(r[k]) for k in ("seconds", "of_which_rolling_out", "loop_seconds", "ratio", "processor_ratio")),
              memory(r), _device(r), r["date"], f"the loop takes at least {LOOP} times as long: {'reached' if r['ratio'] >= LOOP else '**missed**'}"]
             for r in rows]
    return ["FedBuff, against a loop in Python that trains one client at a time (bench/arrivals.py).", "", *_table(heads, cells)]


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _replace(path: pathlib.Path, text: str) -> None:
    fresh = path.with_suffix(path.suffix + ".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)
