"""A picture of a population: who has which classes, how many examples, and how far each client is from the whole."""
from __future__ import annotations

import os
from typing import Any

import numpy as np

from fedjax_lab.data.population import distance
from fedjax_lab.types import Population

SHOWN = 200  # rows of the heat map


def panels(people: Population) -> dict[str, np.ndarray]:
    """What the picture shows.

    Returns:
      size: [N] training examples of each client.
      shares: [n, C] label proportions of at most SHOWN clients, evenly spaced among all, and their numbers `clients` [n].
      distance: [N] total variation between each client's label proportions and those of all examples.
      The last three only where there are classes.
    """
    counts, size = np.asarray(people.counts), np.asarray(people.train.size)
    if not counts.shape[1]:
        return {"size": size}
    clients = np.unique(np.linspace(0, len(size) - 1, min(SHOWN, len(size))).round().astype(np.int64))
    shares = counts[clients] / np.maximum(counts[clients].sum(1, keepdims=True), 1)
    return {"size": size, "clients": clients, "shares": shares, "distance": distance(counts)}


def plot(people: Population, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Writes the picture as a PNG (or what the ending of the path says) and returns the arrays that it shows."""
    from matplotlib.figure import Figure

    shown = panels(people)
    figure = Figure(figsize=(12, 4) if "shares" in shown else (5, 4), layout="constrained")
    axes = figure.subplots(1, 3 if "shares" in shown else 1, squeeze=False)[0]
    histogram(axes[-1 if "shares" not in shown else 1], shown["size"], "examples of a client")
    if "shares" in shown:
        heat_map(figure, axes[0], shown)
        histogram(axes[2], shown["distance"], "total variation from all examples", (0, 1))
    facts = people.manifest
    figure.suptitle(f"{facts.get('source', '')}  {facts.get('partition', '')}  {people.clients} clients", fontsize=11)
    figure.savefig(path, dpi=120)
    return shown


def heat_map(figure: Any, axis: Any, shown: dict[str, np.ndarray]) -> None:
    """Label proportions, one row per client."""
    image = axis.imshow(shown["shares"], aspect="auto", vmin=0, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the client's examples")
    rows = np.unique(np.linspace(0, len(shown["clients"]) - 1, 6).astype(int))
    axis.set_yticks(rows, shown["clients"][rows])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="class", ylabel="client")


def histogram(axis: Any, values: np.ndarray, label: str, limits: tuple[float, float] | None = None) -> None:
    """A histogram over clients."""
    axis.hist(values, bins=min(40, max(5, len(values) // 5)), range=limits, color="#3b6ea5")
    axis.set(xlabel=label, ylabel="clients")
