"""What a run costs and tells, as sections of a report: bytes, operations, virtual time, epsilon."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from fedjax_lab.metrics import comparison, pieces, svg

NO_PRIVACY = "No privacy mechanism: epsilon is infinite."
CLOCKED = {"time": "virtual time", "uploads": "uploads", "rejected": "rejected", "waiting": "waiting at the end", "training": "in training at the end"}


def communication(found: Sequence[pieces.Group]) -> str:
    """Bytes of both ways, per round and in all."""
    lines = []
    for g in found:
        up, down, rounds = (statistics.fmean(g.last(c) or [math.nan]) for c in ("bytes_up", "bytes_down", "round"))
        cells = [up / max(rounds, 1), down / max(rounds, 1), up, down, up + down]
        lines.append([pieces.swatch(g), *(escape(pieces.size(c)) for c in cells)])
    pictures = []
    for way in ("up", "down"):
        curve = [svg.Line(g.name, points, g.color) for g in found if len(points := _per_round(g, f"bytes_{way}"))]
        varies = any(np.ptp(line.points[:, 1]) > 1e-3 * line.points[:, 1].max() for line in curve)
        pictures += [svg.chart(f"MB {way} per round, all clients of the round together", curve, "round", "")] if varies else []
    head = ["", "up per round", "down per round", "up in all", "down in all", "both in all"]
    note = "Counted by the wires themselves, for the clients that started (down) and were heard (up). MB are 1,000,000 bytes."
    return pieces.table(head, lines) + pieces.grid(pictures) + f'<p class="note">{note}</p>'


def _per_round(group: pieces.Group, column: str) -> np.ndarray:
    points = comparison.band(group.histories, "round", column)[:, :2] if group.histories else np.zeros((0, 2))
    if len(points) < 2:
        return np.zeros((0, 2))
    return np.column_stack([points[1:, 0], np.diff(points[:, 1]) / np.maximum(np.diff(points[:, 0]), 1) / 1e6])


def computation(found: Sequence[pieces.Group], column: str) -> str:
    """Operations and seconds."""
    known = [g for g in found if g.last("flops")]
    lines = []
    for g in found:
        flops, rounds, seconds = (statistics.fmean(g.last(c) or [math.nan]) for c in ("flops", "round", "seconds"))
        cells = [flops, flops / max(rounds, 1), seconds, seconds / max(rounds, 1), flops / seconds if seconds else math.nan]
        lines.append([pieces.swatch(g), *("not recorded" if math.isnan(c) else svg.number(c) for c in cells)])
    head = ["", "operations", "per round", "seconds", "per round", "operations a second"]
    note = ("Floating-point operations of the clients' own local steps on their own examples, whatever the padding; evaluation, wires and the server are left "
            "out. Seconds are those of this run on its own machine, evaluation included; of runs trained side by side each one's share.")
    picture = pieces.curve(known, column, "flops") if known else ""
    return pieces.table(head, lines) + pieces.grid([picture]) + f'<p class="note">{note}</p>'


def schedule(found: Sequence[pieces.Group]) -> str:
    """Virtual time and uploads of runs whose clients do not wait for each other, and how far the models of nodes are apart."""
    out = ""
    timed, apart = ([g for g in found if g.last(name)] for name in ("time", "consensus_distance"))
    if timed:
        lines = [[pieces.swatch(g), *(pieces.number(g.last(name)) for name in CLOCKED)] for g in timed]
        note = ("Virtual time: when the last update of the server took place, in the time of the schedule's law of delays. Uploads: consumed by then; rejected: "
                "refused as too old.")
        out += pieces.table(["", *CLOCKED.values()], lines) + pieces.grid([pieces.curve(timed, "uploads", "time")]) + f'<p class="note">{note}</p>'
    if apart:
        note = "Consensus distance: mean squared distance of the nodes' models to their average, which is what is evaluated as the global model."
        out += pieces.grid([pieces.curve(apart, "consensus_distance", "round")]) + f'<p class="note">{note}</p>'
    return out


def privacy(found: Sequence[pieces.Group]) -> str:
    """Epsilon and what it rests on, of runs with a mechanism."""
    private = [g for g in found if g.last("epsilon")]
    if not private:
        return f"<p>{NO_PRIVACY}</p>"
    lines = [[pieces.swatch(g), escape(pieces.number(g.last("epsilon")))] for g in private]
    grounds = pieces.facts({g.name: "; ".join(dict.fromkeys(g.last("privacy"))) for g in private}, "wide")
    bare = ", ".join(g.name for g in found if g not in private)
    rest = f"<p>{escape(bare)}: {NO_PRIVACY[0].lower()}{NO_PRIVACY[1:]}</p>" if bare else ""
    bounded = [g for g in private if math.isfinite(max(g.last("epsilon")))]
    return pieces.table(["", "epsilon"], lines) + "<h3>What it rests on</h3>" + grounds + pieces.grid([pieces.curve(bounded, "epsilon", "round")]) + rest


__all__ = ["communication", "computation", "privacy", "schedule"]
