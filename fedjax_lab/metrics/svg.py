"""Charts as inline SVG without scripts: colors come from the page's style sheet, values show under the pointer.

Lines are drawn in the classes c0, c1, ..., which the page gives colors for light and dark; see `metrics.page`.
"""
from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 36
COLORS = 8
MARKED = 41  # a line of at most so many points has marks


class Line(NamedTuple):
    """A curve: its name, points [n, 2], perhaps the ends of a band around it [n, 2], and which color. Thin ones have no marks."""

    name: str
    points: np.ndarray
    color: int = 0
    band: np.ndarray | None = None
    dashed: bool = False
    thin: bool = False


def kind(number: int) -> str:
    """The classes of the color of this number; after all colors have been used, they come again, dashed."""
    return f"c{number % COLORS}" + (" again" if number % (2 * COLORS) >= COLORS else "")


def number(value: float) -> str:
    """A number for an axis or a table of large numbers: 1250 -> 1.25k.

    >>> [number(x) for x in (0, 0.25, 1250, 2e6, 3.5e13)]
    ['0', '0.25', '1.25k', '2M', '35T']
    """
    for power, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.99995 * 10**power:
            return f"{value / 10**power:.3g}{unit}" if abs(value) < 999.5 * 10**power else f"{value / 10**power:.0f}{unit}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`.

    >>> ticks(0.1, 0.97)
    [0.2, 0.4, 0.6, 0.8]
    """
    raw = (high - low) / count
    step = 10 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw * 0.999)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def figure(caption: str, picture: str) -> str:
    """A picture with what it shows."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def chart(caption: str, lines: Sequence[Line], x: str, y: str, x_range: tuple[float, float] | None = None) -> str:
    """Curves on common axes, which say what they are in the words of x and y."""
    points = np.concatenate([line.points for line in lines] + [np.column_stack([line.points[:, 0], b]) for line in lines if line.band is not None
                                                              for b in line.band.T])
    points = points[np.isfinite(points).all(1)]
    across, up = x_range or _range(points[:, 0], 0), _range(points[:, 1], 0.06)
    place = _Place(across, up)
    drawn = [_band(line, place) for line in lines if line.band is not None] + [_line(line, place) for line in lines]
    return figure(caption, _frame(caption, place, _axes(place, x, y) + "".join(drawn)))


def bars(caption: str, heights: np.ndarray, edges: np.ndarray, x: str, y: str) -> str:
    """A histogram: heights [b] between edges [b + 1]."""
    place = _Place((float(edges[0]), float(edges[-1])), (0.0, float(heights.max()) * 1.06 or 1.0))
    whole = edges[0] % 1 == 0.5 and edges[1] - edges[0] == 1  # a bar for each whole number
    drawn = "".join(f'<rect x="{place.x(a):.1f}" y="{place.y(h):.1f}" width="{max(place.x(b) - place.x(a) - 0.6, 0.4):.1f}" '
                    f'height="{place.y(0) - place.y(h):.1f}"><title>{_span(a, b)}: {h:g}</title></rect>'
                    for h, a, b in zip(heights, edges[:-1], edges[1:], strict=True) if h)
    return figure(caption, _frame(caption, place, _axes(place, x, y, whole) + f'<g class="bar">{drawn}</g>'))


def heat_map(caption: str, values: np.ndarray, rows: Sequence[Any], columns: Sequence[str], x: str, y: str) -> str:
    """Values [n, K] from 0 to their maximum as shades; row i is named rows[i], column k columns[k]."""
    n, k = values.shape
    place = _Place((-0.5, k - 0.5), (n - 0.5, -0.5))
    box = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    image = f'<image {box} preserveAspectRatio="none" class="shades" href="data:image/png;base64,{_shades(values)}"/><rect class="box" {box}/>'
    at_x = [i for i in range(k) if k <= 12 or i % -(-k // 8) == 0]
    at_y = sorted({round(i) for i in np.linspace(0, n - 1, min(n, 6))})
    names = "".join(f'<text x="{place.x(i):.1f}" y="{HEIGHT - BOTTOM + 13}" class="mid">{escape(str(columns[i])[:7])}</text>' for i in at_x)
    names += "".join(f'<text x="{LEFT - 5}" y="{place.y(i) + 3.5:.1f}" class="end">{escape(str(rows[i]))}</text>' for i in at_y)
    return figure(caption, _frame(caption, place, image + names + _words(x, y)))


class _Place(NamedTuple):
    """Where values are on the picture, from the ends of the axes."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        return LEFT + (value - self.across[0]) / (self.across[1] - self.across[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.up[0]) / (self.up[1] - self.up[0]) * (HEIGHT - TOP - BOTTOM)


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return low - margin * (high - low), high + margin * (high - low)


def _frame(caption: str, place: _Place, inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(caption)}">{inside}</svg>'


def _axes(place: _Place, x: str, y: str, whole: bool = False) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(*place.up):
        at = place.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/><text x="{LEFT - 5}" y="{at + 3.5:.1f}" class="end">{number(value)}</text>')
    for value in (v for v in ticks(*place.across) if not whole or v % 1 == 0):
        at = place.x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/><text x="{at:.1f}" y="{bottom + 13}" class="mid">{number(value)}</text>')
    return "".join(parts) + _words(x, y)


def _words(x: str, y: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" class="mid name">{escape(x)}</text>'
            f'<text transform="translate(11 {middle}) rotate(-90)" class="mid name">{escape(y)}</text>')


def _line(line: Line, place: _Place) -> str:
    points = line.points[np.isfinite(line.points).all(1)]
    path = " ".join(f"{place.x(a):.1f},{place.y(b):.1f}" for a, b in points)
    dashes = " dashed" * line.dashed
    out = f'<polyline class="line {kind(line.color)}{dashes}{" thin" * line.thin}" points="{path}"/>'
    if len(points) <= MARKED and not line.thin:
        out += "".join(f'<circle class="mark {kind(line.color)}" cx="{place.x(a):.1f}" cy="{place.y(b):.1f}" r="2.2">'
                       f"<title>{escape(line.name)}: {b:.4g} at {number(a)}</title></circle>" for a, b in points)
    return out


def _band(line: Line, place: _Place) -> str:
    low = [f"{place.x(a):.1f},{place.y(b):.1f}" for a, b in zip(line.points[:, 0], line.band[:, 0], strict=True) if math.isfinite(b)]
    high = [f"{place.x(a):.1f},{place.y(b):.1f}" for a, b in zip(line.points[:, 0], line.band[:, 1], strict=True) if math.isfinite(b)]
    return f'<polygon class="band {kind(line.color)}" points="{" ".join(low + high[::-1])}"/>'


def _span(a: float, b: float) -> str:
    return f"{(a + b) / 2:g}" if b - a == 1 and a % 1 == 0.5 else f"{a:.4g} to {b:.4g}"


def _shades(values: np.ndarray) -> str:
    """A PNG of one color, as opaque as the value is high: it suits a light page and a dark one."""
    from PIL import Image

    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = (0x3F, 0x86, 0xD9)
    pixels[..., 3] = np.round(255 * np.nan_to_num(values) / max(float(np.nanmax(values, initial=0)), 1e-9))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


__all__ = ["COLORS", "Line", "bars", "chart", "figure", "heat_map", "kind", "number", "ticks"]
