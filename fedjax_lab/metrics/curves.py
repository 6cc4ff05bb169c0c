"""Curves of runs as a picture."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PANELS = {"test_accuracy": "global test accuracy", "test_loss": "global test loss", "client_test_accuracy_mean": "accuracy over clients"}


AXES = {"round": "round", "time": "virtual time", "uploads": "uploads", "bytes_up": "bytes up", "seconds": "seconds"}


def draw(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Any, against: str = "round") -> None:
    """Writes a PNG: the global model's accuracy and loss, and the clients' mean with its worst decile.

    Args:
      runs: {label: rows of metrics.jsonl}.
      path: where to write; a path object or text.
      against: the column of the horizontal axis, one of AXES.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [k for k in PANELS if any(k in row for rows in runs.values() for row in rows)]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.4), squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        for color, (label, rows) in enumerate(runs.items()):
            _line(axis, rows, against, name, label, f"C{color}")
            if name == "client_test_accuracy_mean":
                _line(axis, rows, against, "client_test_accuracy_worst_decile", f"{label}, worst decile", f"C{color}", "--")
                _line(axis, rows, against, "personal_client_test_accuracy_mean", f"{label}, personal", f"C{color}", ":")
        axis.set(xlabel=AXES[against], title=PANELS[name])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with path.open("wb") if hasattr(path, "open") else open(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _line(axis, rows, against: str, name: str, label: str, color: str, style: str = "-") -> None:
    points = np.array([(row[against], row[name]) for row in rows if name in row])
    if len(points):
        axis.plot(points[:, 0], points[:, 1], style, color=color, label=label, marker="." if style == "-" else None)
