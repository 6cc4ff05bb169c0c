"""Several runs side by side, with every seed: one table and one picture, for comparisons and sweeps alike.

    results = {"fedavg": {0: rows, 1: rows}, "scaffold": {0: rows, 1: rows}}    # label, seed, rows of metrics.jsonl
    lines = table(results, "test_accuracy", baseline="fedavg", target=0.9)
    markdown(lines);  csv(lines);  draw(results, "test_accuracy", path)
"""
from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, float]]
Results = Mapping[str, Mapping[int, Rows]]
"""{label: {seed: rows of metrics.jsonl}}; a run that broke off has no rows."""

AXES = {"round": "round", "megabytes": "MB up and down", "time": "virtual time"}
LEDGER = {"time": "virtual time", "uploads": "uploads", "rejected": "rejected", "consensus_distance": "consensus distance", "epsilon": "epsilon"}
"""Columns of metrics.jsonl that only some runs have, and their heading in the table."""


def words(metric: str) -> str:
    """Which model a column of metrics.jsonl is about, on which data, in words."""
    prefixes = {"test_": "global model, central test set", "client_test_": "global model, clients' test sets",
                "personal_client_test_": "personal models, clients' test sets"}
    prefix = next((p for p in prefixes if metric.startswith(p)), "")
    return f"{prefixes.get(prefix, 'the run')}: {metric.removeprefix(prefix).replace('_', ' ')}"


def higher_is_better(metric: str) -> bool:
    """Whether more of a column of metrics.jsonl is better; less is of a loss, a deviation, a distance and of epsilon."""
    return "loss" not in metric and not metric.endswith(("_std", "_distance", "epsilon"))


def legend(metric: str, baseline: str, target: float, lines: Sequence[Mapping[str, Any]]) -> str:
    """What the columns of the table of these lines mean."""
    seeds = next(line["runs"] for line in lines if line["name"] == baseline)
    until = "at least" if higher_is_better(metric) else "at most"
    return f"""{words(metric)} ({metric}): mean ± standard deviation over {seeds} seeds, after the last round and at
the best evaluation of each run. To target: median of the rounds, and of the MB up and down, until it is {until} {target:.4g}. MB and
operations: of a whole run, both ways together, and floating-point operations of local training. Seconds: a run's share of the training,
compilation apart. Difference: last minus last of {baseline}, paired by seed (same clients, initial model and
cohorts), with its 95 % confidence interval by Student's t; bold where that leaves out zero.""" + _ledgers(lines)


def _ledgers(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the columns of LEDGER mean, where some line has them, and what each epsilon rests on."""
    there = _there(lines)
    words = {"time": "Virtual time, uploads and rejected: of a whole run, in the time of the schedule's law of delays.",
             "consensus_distance": "Consensus distance: mean squared distance of the nodes' models to their average, after the last round.",
             "epsilon": "Epsilon: after the last round; it is infinite where no privacy mechanism is named."}
    rests = [f"- {line['name']}: {line['privacy']}" for line in lines if line["privacy"]]
    said = [text for name, text in words.items() if name in there]
    return "".join(f"\n{text}" for text in said) + ("\n\n" + "\n".join(rests) if rests else "")


def _there(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in LEDGER if any(not math.isnan(line[name]) for line in lines)]


def score(runs: Sequence[Rows], metric: str) -> float:
    """The mean after the last round, negated where less is better; minus infinity if a run broke off."""
    sign = 1 if higher_is_better(metric) else -1
    return sign * _mean([rows[-1][metric] for rows in runs]) if all(runs) else -math.inf


def default_target(results: Results, metric: str, baseline: str) -> float:
    """The baseline's mean after its last round, NaN where it has none."""
    return _mean([rows[-1][metric] for rows in results[baseline].values() if rows])


def table(results: Results, metric: str, baseline: str, target: float) -> list[dict[str, Any]]:
    """One line per label.

    Args:
      results: of every label, with the same seeds.
      metric: a column of metrics.jsonl.
      baseline: the label that the others are compared to.
      target: what "to target" counts up to.

    Returns:
      Dicts with name; runs and broken, how many; last_* after the last round and best_* at the best evaluation of each run, mean and
      standard deviation over the seeds, of the runs that did not break off; rounds_to_target, bytes_to_target and time_to_target (virtual
      time), medians over the seeds in which a run that never got there counts as infinite; reached, how many got there; bytes_up,
      bytes_down, flops and the columns of LEDGER, means of a whole run, NaN where it has none; privacy, what epsilon rests on, or "";
      seconds, mean of a run without compilation;
      difference, the mean over the seeds of last minus the baseline's last, and difference_low and difference_high, its 95 % confidence
      interval by Student's t over pairs of equal seed (None below two pairs).
    """
    return [_line(name, runs, results[baseline] if name != baseline else None, metric, target) for name, runs in results.items()]


def _line(name: str, runs: Mapping[int, Rows], base: Mapping[int, Rows] | None, metric: str, target: float) -> dict[str, Any]:
    whole = [rows for rows in runs.values() if rows]
    pick = max if higher_is_better(metric) else min
    last, best = [rows[-1][metric] for rows in whole], [pick(row[metric] for row in rows) for rows in whole]
    reached = [_first(rows, metric, target) for rows in runs.values()]
    timed = bool(whole) and all("time" in rows[-1] for rows in whole)
    pairs = [rows[-1][metric] - base[seed][-1][metric] for seed, rows in runs.items() if rows and base.get(seed)] if base else []
    mean, low, high = interval(pairs)
    return {
        "name": name, "runs": len(runs), "broken": len(runs) - len(whole),
        "last_mean": _mean(last), "last_std": _std(last), "best_mean": _mean(best), "best_std": _std(best),
        "rounds_to_target": statistics.median(row["round"] if row else math.inf for row in reached),
        "bytes_to_target": statistics.median(traffic(row) if row else math.inf for row in reached),
        "time_to_target": statistics.median(row.get("time", math.nan) if row else math.inf for row in reached) if timed else math.nan,
        "reached": sum(row is not None for row in reached),
        **{name: _mean([rows[-1].get(name, math.nan) for rows in whole]) for name in ("bytes_up", "bytes_down", "flops", *LEDGER)},
        "privacy": next((rows[-1]["privacy"] for rows in whole if "privacy" in rows[-1]), ""),
        "seconds": _mean([rows[-1]["seconds"] for rows in whole]),
        "difference": mean, "difference_low": low, "difference_high": high,
    }


def traffic(row: Mapping[str, float]) -> float:
    """Bytes up and down until this evaluation."""
    return row["bytes_up"] + row["bytes_down"]


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """Mean of paired differences, with the ends of its confidence interval by Student's t; None for what they are too few for."""
    if not differences:
        return None, None, None
    mean, n = math.fsum(differences) / len(differences), len(differences)
    if n < 2:
        return mean, None, None
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


def _first(rows: Rows, metric: str, target: float) -> Mapping[str, float] | None:
    better = (lambda x: x >= target) if higher_is_better(metric) else (lambda x: x <= target)
    return next((row for row in rows if better(row[metric])), None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for people, with those columns of LEDGER that a run has; a difference whose interval leaves out zero is bold."""
    there = _there(lines)
    timed = ["time to target"] * ("time" in there)
    head = ["", "runs", "last", "best", "rounds to target", "MB to target", *timed, "MB", "operations", *(LEDGER[name] for name in there), "seconds",
            "difference (95 % interval)"]
    body = [[line["name"], _runs(line), _spread(line, "last"), _spread(line, "best"), _number(line["rounds_to_target"], "g"),
             _number(line["bytes_to_target"] / 1e6, ".4g"), *([_number(line["time_to_target"], ".4g")] if timed else []),
             _number((line["bytes_up"] + line["bytes_down"]) / 1e6, ".4g"), _number(line["flops"], ".3g"),
             *(_amount(line, name) for name in there), _number(line["seconds"], ".3g"), _difference(line)] for line in lines]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rows = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in [head, *body]]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]]) + "\n"


def _runs(line) -> str:
    return f"{line['runs']}" + (f", {line['broken']} broke off" if line["broken"] else "")


def _spread(line, what: str) -> str:
    mean, std = line[f"{what}_mean"], line[f"{what}_std"]
    return "-" if math.isnan(mean) else f"{mean:.4f}" if math.isnan(std) else f"{mean:.4f} ± {std:.4f}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else "never" if math.isinf(value) else f"{value:{form}}"


def _amount(line, name: str) -> str:
    return "infinite" if math.isinf(line[name]) else _number(line[name], ".4g")


def _difference(line) -> str:
    mean, low, high = line["difference"], line["difference_low"], line["difference_high"]
    if mean is None or low is None:
        return "" if mean is None else f"{mean:+.4f}"
    text = f"{mean:+.4f} ({low:+.4f} .. {high:+.4f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for programs: every number in full, empty where there is none."""
    import csv as files

    out = io.StringIO()
    writer = files.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()})
    return out.getvalue()


def draw(results: Results, metric: str, path: Any) -> None:
    """Writes a PNG: the metric's mean over the seeds with a band of one standard deviation, against rounds, bytes up and down, and
    virtual time where runs have one. Runs that broke off are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    whole = {label: [rows for rows in runs.values() if rows] for label, runs in results.items()}
    rows = [row for runs in whole.values() for run in runs for row in run]
    axes = [name for name in AXES if name == "megabytes" or any(name in row for row in rows)]
    figure, panels = plt.subplots(1, len(axes), figsize=(1.6 + 4.6 * len(axes), 3.8), squeeze=False, sharey=True)
    colors = plt.get_cmap("tab10" if len(whole) <= 10 else "turbo")(np.linspace(0, 1, max(10, len(whole))))
    for panel, name in zip(panels[0], axes, strict=True):
        for color, (label, runs) in zip(colors, whole.items()):
            _band(panel, runs, name, metric, label, color)
        panel.set_xlabel(AXES[name])
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(metric.replace("_", " "))
    panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    with path.open("wb") if hasattr(path, "open") else open(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _band(panel, runs: Sequence[Rows], name: str, metric: str, label: str, color) -> None:
    points = band(runs, name, metric)
    if len(points):
        x, mean, std = points.T
        panel.plot(x, mean, color=color, label=label, marker="." if len(x) < 40 else None)
        panel.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)


def band(runs: Sequence[Rows], name: str, metric: str) -> np.ndarray:
    """[evaluations, 3]: x, mean and standard deviation of the metric over the runs, for as many evaluations as all of them have."""
    place = (lambda row: traffic(row) / 1e6) if name == "megabytes" else (lambda row: row.get(name, math.nan))
    columns = [[(place(row), row[metric]) for row in rows] for rows in zip(*runs)]
    return np.array([(np.mean([x for x, _ in c]), np.mean([y for _, y in c]), np.std([y for _, y in c])) for c in columns])
