"""The style sheet of a report: one column on a phone, light or dark as the reader's device has it."""
from __future__ import annotations

LIGHT = ("#2563b0", "#d1603d", "#2e8b57", "#8e5bb5", "#a87908", "#c2417c", "#2a8c9a", "#6b7280")
DARK = ("#6ea8fe", "#ff9a76", "#63c78b", "#c09be8", "#e2b84c", "#f285b5", "#67cbd9", "#a8b0bd")


def _colors(values: tuple[str, ...]) -> str:
    return "".join(f"--c{i}:{value};" for i, value in enumerate(values))


STYLE = f"""
:root{{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b1f24;--quiet:#5b6570;--line:#dfe3e8;--grid:#e9ecf0;--warn:#b3261e;{_colors(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{--page:#101317;--card:#181c21;--text:#e6e9ed;--quiet:#9aa5b1;--line:#2c333b;--grid:#262c33;--warn:#ff8a80;{_colors(DARK)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}}
header,main{{max-width:1240px;margin:0 auto;padding:0 20px}}
header{{padding-top:28px}}
h1{{font-size:26px;line-height:1.25;margin:0}}
header p{{margin:4px 0 12px;color:var(--quiet)}}
nav{{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:14px}}
a{{color:var(--c0);text-decoration:none}}
a:hover{{text-decoration:underline}}
section{{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 20px 18px;margin:16px 0}}
h2{{font-size:19px;margin:0 0 10px}}
h3{{font-size:15px;margin:16px 0 8px}}
h3:first-of-type{{margin-top:4px}}
.grid{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:18px 22px;margin:12px 0}}
figure{{margin:0;min-width:0;max-width:520px}}
figcaption{{font-size:13px;line-height:1.35;color:var(--quiet);margin-bottom:4px;min-height:2.7em;display:flex;align-items:flex-end}}
svg{{display:block;width:100%;height:auto;overflow:visible}}
svg text{{font-size:10.5px;fill:var(--quiet)}}
svg .mid{{text-anchor:middle}}
svg .end{{text-anchor:end}}
svg .name{{font-size:11.5px}}
svg .grid{{stroke:var(--grid);fill:none}}
svg .box{{stroke:var(--line);fill:none}}
svg .bar{{fill:var(--c0)}}
svg .shades{{image-rendering:pixelated}}
svg .line{{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}}
svg .thin{{stroke-width:1.2}}
svg .again,svg .dashed{{stroke-dasharray:5 3}}
svg .mark{{fill:var(--c);stroke:var(--card);stroke-width:.6}}
svg .mark:hover{{stroke-width:6;stroke:var(--c)}}
svg .band{{fill:var(--c);opacity:.17}}
{"".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(LIGHT)))}
.swatch{{display:inline-block;width:14px;height:4px;border-radius:2px;background:var(--c);margin-right:7px;vertical-align:middle}}
.swatch.again{{background:repeating-linear-gradient(90deg,var(--c) 0 4px,transparent 4px 6px)}}
.key{{display:flex;flex-wrap:wrap;gap:2px 20px;margin:4px 0 8px;font-size:14px}}
.scroll{{overflow-x:auto;margin:8px 0;-webkit-overflow-scrolling:touch}}
table{{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}}
th,td{{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}}
th{{color:var(--quiet);font-weight:600;font-size:13px}}
.numbers th:not(:first-child),.numbers td:not(:first-child){{text-align:right;padding:5px 0 5px 18px}}
td:first-child{{padding-right:18px}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px}}
.tiles div{{border:1px solid var(--line);border-radius:8px;padding:10px 12px}}
.tiles b{{display:block;font-size:21px;line-height:1.3;font-variant-numeric:tabular-nums}}
.tiles span{{font-size:13px;color:var(--quiet)}}
dl{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(45%,200px),1fr));gap:8px 20px;margin:8px 0}}
dt{{font-size:12.5px;color:var(--quiet)}}
dl .wide{{grid-column:1/-1}}
dd{{margin:0;overflow-wrap:anywhere;font-size:14px}}
pre{{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:10px 12px;margin:8px 0;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}}
details{{border-top:1px solid var(--line);padding:6px 0}}
summary{{cursor:pointer;font-size:14px}}
.note{{color:var(--quiet);font-size:13px;max-width:90ch;margin:10px 0 0}}
.broken{{color:var(--warn);font-size:14px;margin:6px 0}}
@media (max-width:640px){{header,main{{padding:0 12px}}header{{padding-top:18px}}h1{{font-size:22px}}section{{padding:12px 12px 14px;margin:12px 0}}figcaption{{min-height:0}}figure{{max-width:none}}}}
@media print{{body{{background:#fff}}section{{break-inside:avoid;border:0}}nav{{display:none}}}}
"""

__all__ = ["STYLE"]
