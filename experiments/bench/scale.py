"""How time and memory follow the size of an experiment, each point in a process of its own.

    clients      60,000 examples split evenly over 10 to 10,000 clients that all take part: seconds an epoch
    cohort       10 to 10,000 clients of 60 examples in a round: seconds a round
    population   1,000 to 15,000,000 generated clients off the device, 1,000 in a round: seconds a round, and until the first
    devices      1,000 clients of 60 examples in a round on 1, 2, 4, ... devices
    nodes        10 to 1,000 nodes of 60 examples in a ring, each with a model of its own (DFedAvgM): seconds a round
"""
from __future__ import annotations

import concurrent.futures
import multiprocessing
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from experiments.bench import measure
from fedjax_lab import config as configs
from fedjax_lab import platform, run, spec

EXAMPLES = 60_000
BATCH = 6
Point = dict[str, Any]  # {"axis", "series", "value", and what was measured}


def crowd(model: str, clients: int, size: int, cohort: int, batch: int, dim: int = 784, **more: str) -> dict[str, Any]:
    """The settings of FedAvg on generated clients of `size` examples each."""
    options = {"lr": 0.1, "epochs": 1, "batch_size": batch}
    return {"task": f"crowd_{model}:clients={clients},size={size},dim={dim}", "cohort": cohort, "options": options, **more}


def _clients() -> list[tuple[str, int, dict]]:
    return [(model, n, crowd(model, n, EXAMPLES // n, n, BATCH)) for model in ("logreg", "2nn") for n in (10, 100, 1_000, 10_000)]


def _cohort() -> list[tuple[str, int, dict]]:
    return [(model, n, crowd(model, 10_000, 60, n, 20, dim=32)) for model in ("logreg", "2nn") for n in (10, 100, 1_000, 10_000)]


def _population() -> list[tuple[str, int, dict]]:
    sizes = (1_000, 10_000, 100_000, 1_000_000, 15_000_000)
    return [("logreg", n, crowd("logreg", n, 20, 1_000, 10, dim=32, population="host")) for n in sizes]


def _devices() -> list[tuple[str, int, dict]]:
    counts = [2**i for i in range(platform.cores().bit_length())]
    return [(model, n, crowd(model, 1_000, 60, 1_000, 20, devices=str(n))) for model in ("logreg", "2nn") for n in counts]


def _nodes() -> list[tuple[str, int, dict]]:
    gossip = {"method": "dfedavgm", "schedule": "gossip", "graph": "ring"}
    return [("2nn", n, crowd("2nn", n, 60, n, 10, **gossip)) for n in (10, 100, 1_000)]


AXES = {"clients": _clients, "cohort": _cohort, "population": _population, "devices": _devices, "nodes": _nodes}
"""{axis: () -> (series, value, settings) of its points}."""


def chosen(text: str) -> list[str]:
    """The axes that a text names, joined by commas.

    Raises:
      ValueError: there is none of that name.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in AXES:
            raise ValueError(f"--axes={text}: '{name}' is unknown; valid: {spec.nearest(name, AXES)}")
    return list(dict.fromkeys(names))


def run_axes(axes: Iterable[str], given: Mapping[str, str]) -> list[Point]:
    """Measures every point of these axes.

    Args:
      given: further fields of Config for all of them.
    """
    spawn = multiprocessing.get_context("spawn")
    points = []
    for axis in axes:
        for series, value, settings in AXES[axis]():
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
                measured = pool.submit(point, {**settings, **given}).result()
            points.append({"axis": axis, "series": series, "value": value, **measured})
    return points


def point(settings: Mapping[str, Any], rounds: int = 3) -> dict[str, Any]:
    """Measures one configuration in this process: a few rounds, one to a device call, after one of warming up. The memory is that held
    once the data is there."""
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    prepared = run.prepare(configs.make({"method": "fedavg", "rounds": rounds, "eval_every": 1, "eval_clients": 1, **settings}))
    ready = time.perf_counter() - start
    measure.forget_peak()  # of making the data
    row = measure.measure(prepared, 1)
    startup = ready + row["compile_seconds"] + row["evaluation_seconds"]
    return {"startup_seconds": startup, **{k: v for k, v in row.items() if k not in ("test_accuracy", "warmup", "rounds")}}


def spread(points: Sequence[Point], axis: str, series: str, what: str) -> float:
    """The longest of a series' times over its shortest; `what` names the time."""
    seconds = [p[what] for p in points if (p["axis"], p["series"]) == (axis, series)]
    return max(seconds) / min(seconds)


def draw(points: Sequence[Point], path: pathlib.Path) -> None:
    """One panel per axis: seconds a round as lines, the peak memory dashed on an axis of its own."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    labels = {"clients": f"clients that share {EXAMPLES:,} examples", "cohort": "clients in a round", "population": "clients in all",
              "devices": "devices", "nodes": "nodes that gossip"}
    axes = [axis for axis in AXES if any(p["axis"] == axis for p in points)]
    figure, panels = pyplot.subplots(1, len(axes), figsize=(4.2 * len(axes), 3.4), squeeze=False, layout="constrained")
    for axis, panel in zip(axes, panels[0]):
        memory = panel.twinx()
        series = list(dict.fromkeys(p["series"] for p in points if p["axis"] == axis))
        for i, name in enumerate(series):
            rows = sorted((p for p in points if (p["axis"], p["series"]) == (axis, name)), key=lambda p: p["value"])
            values = [p["value"] for p in rows]
            panel.plot(values, [p["seconds_per_round"] for p in rows], "o-", color=f"C{i}", label=f"{name}: seconds a round")
            held = [p.get("peak_device_mb", p["peak_rss_mb"]) / 1e3 for p in rows]
            memory.plot(values, held, "x--", color=f"C{i}", alpha=0.6, label=f"{name}: peak memory")
        seconds = [p["seconds_per_round"] for p in points if p["axis"] == axis]
        panel.set(xscale="log", yscale="log", ylim=(min(seconds) / 3, 5 * max(seconds)), xlabel=labels[axis], ylabel="seconds a round")
        memory.set(ylabel="GB", ylim=(0, 1.5 * max(p.get("peak_device_mb", p["peak_rss_mb"]) for p in points if p["axis"] == axis) / 1e3))
        lines = [line for side in (panel, memory) for line in side.get_lines()]
        panel.legend(lines, [line.get_label() for line in lines], fontsize=7)
        panel.grid(alpha=0.3)
        if axis == "devices":
            panel.set_xscale("linear")
            panel.set_xticks(sorted({p["value"] for p in points if p["axis"] == axis}))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
