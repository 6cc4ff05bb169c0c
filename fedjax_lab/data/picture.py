"""A picture of a population: who has which labels, how far each client is from the whole, and how many examples it has."""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lab.data import manifest
from fedjax_lab.data.vertical import Vertical
from fedjax_lab.types import Population

SHOWN = 200  # rows of the heat map
COLOR = "#3b6ea5"


def panels(people: Population) -> dict[str, np.ndarray]:
    """What the picture shows.

    Returns:
      size: [N] training examples of each client, or the nodes of its graph.
      clients: [n] at most SHOWN of the clients, evenly spaced among all.
      shares: [n, K] their label proportions.
      distance: [n] total variation between these and the proportions of all examples; NaN where a client has no labels.
      The last three only where there are labels; see manifest.profile for their kinds.
    """
    size = np.asarray(people.manifest.get("nodes", people.train.size))
    if "labels" not in people.manifest:
        return {"size": size}
    counts = manifest.profile(people.train, people.counts).counts
    clients = np.unique(np.linspace(0, len(size) - 1, min(SHOWN, len(size))).round().astype(np.int64))
    shares = counts[clients] / np.maximum(counts[clients].sum(1, keepdims=True), 1)
    return {"size": size, "clients": clients, "shares": shares, "distance": manifest.distance(counts)[clients]}


def condensed(people: Population) -> dict[str, np.ndarray]:
    """What the picture shows, small whatever the population: as `panels`, but of the sizes their histogram, heights [b] and edges [b + 1]."""
    shown = panels(people)
    sizes = shown.pop("size")
    heights, edges = np.histogram(sizes, bins(sizes))
    return {**{k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in shown.items()}, "heights": heights, "edges": edges}


def plot(people: Population, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Writes the picture as a PNG and returns the arrays that it shows."""
    from matplotlib.figure import Figure

    shown, facts = panels(people), people.manifest
    figure = Figure(figsize=(13, 4.4) if "shares" in shown else (6, 4.4), layout="constrained")
    if "shares" in shown:
        heat, bars, last = figure.subplots(1, 3, width_ratios=(2, 1, 1.5))
        heat_map(figure, heat, shown, facts["labels"], facts.get("label_names"))
        distances(bars, shown["distance"], facts["labels"])
        bars.sharey(heat)
    else:
        last = figure.subplots()
    histogram(last, shown["size"], "nodes of a client" if "nodes" in facts else "training examples of a client")
    figure.suptitle(title(facts, shown["size"]), fontsize=10)
    _save(figure, path)
    return shown


def plot_parties(parts: Vertical, facts: Mapping[str, Any], path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Writes the picture of a vertical partition as a PNG and returns what it shows.

    Returns:
      held: bool [P, F] which party holds which column.   alone: [P] examples that each holds by itself.
    """
    from matplotlib.figure import Figure

    held = np.zeros((facts["parties"], facts["features"]), bool)
    for row, columns in zip(held, parts.columns):
        row[columns[columns >= 0]] = True
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    heat, bars = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    heat.imshow(held, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    heat.set(xlabel="feature held", ylabel="party", yticks=range(len(held)))
    bars.barh(range(len(held)), [len(parts.aligned)] * len(held), color=COLOR, label="held by all")
    bars.barh(range(len(held)), parts.private.size, left=len(parts.aligned), color="#b8c9dd", label="held alone")
    bars.legend(fontsize=8)
    bars.set(xlabel="training examples")
    figure.suptitle(f"{facts['source']}   {facts['partition']}", fontsize=10)
    _save(figure, path)
    return {"held": held, "alone": parts.private.size}


def title(facts: Mapping[str, Any], size: np.ndarray) -> str:
    """Source and partition, and the numbers of the manifest below."""
    line = f"{len(size):,} clients, {size.sum():,} examples ({size.min()} to {size.max()}, median {np.median(size):g})"
    if "entropy" in facts:
        line += f", entropy {facts['entropy']:.3g} nats, total variation {facts['total_variation']:.3g}"
    task = f"   task {facts['task']}" if "task" in facts else ""
    return f"{facts.get('source', '')}   {facts.get('partition', '')}{task}\n{line}"


def heat_map(figure: Any, axis: Any, shown: Mapping[str, np.ndarray], label: str, names: list[str] | None) -> None:
    """Label proportions, one row per client."""
    image = axis.imshow(shown["shares"], aspect="auto", vmin=0, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the client's labels")
    rows = np.unique(np.linspace(0, len(shown["clients"]) - 1, 6).astype(int))
    axis.set_yticks(rows, shown["clients"][rows])
    if names is None:
        axis.xaxis.get_major_locator().set_params(integer=True)
    else:
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axis.set(xlabel=label, ylabel="client")


def distances(axis: Any, values: np.ndarray, label: str) -> None:
    """How far each client is from the whole, in the rows of the heat map."""
    axis.stairs(np.nan_to_num(values), np.arange(len(values) + 1) - 0.5, orientation="horizontal", fill=True, color=COLOR)
    axis.set(xlim=(0, 1), xlabel=f"total variation\nfrom all {label} proportions")


def histogram(axis: Any, values: np.ndarray, label: str) -> None:
    """A histogram over clients."""
    axis.stairs(*np.histogram(values, bins(values)), fill=True, color=COLOR)
    axis.axvline(np.median(values), color="#c44e52", lw=1, label=f"median {np.median(values):g}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8)
    axis.set(xlabel=label, ylabel="clients")


def bins(values: np.ndarray) -> np.ndarray | int:
    """Of a histogram: few whole numbers have a bar each."""
    low, high = values.min(), values.max()
    return np.arange(low, high + 2) - 0.5 if high - low < 40 else 40


def _save(figure: Any, path: str | os.PathLike) -> None:
    from etils import epath

    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
