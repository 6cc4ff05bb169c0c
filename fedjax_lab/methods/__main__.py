"""The registry on the terminal: python -m fedjax_lab.methods [--json]"""
from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

from fedjax_lab import registry, spec

COLUMNS = ("name", "kind", "family", "year", "summary", "paper")


def card(factory: Callable) -> dict[str, Any]:
    """What is registered about one factory, and its options, ready for JSON."""
    info = {k: getattr(factory.info, k) for k in ("name", "kind", "family", "paper", "year", "summary")}
    options = [{"name": o.name, "type": o.type, "default": _plain(o.default), "help": o.help} for o in spec.options(factory)]
    return {**info, "options": options}


def _plain(default: Any) -> Any:
    """JSON has no infinity; the text "inf" is read as one by the flags."""
    return str(default) if isinstance(default, float) and not math.isfinite(default) else default


def table(cards: list[dict[str, Any]]) -> str:
    """One line per card under a line of headings; the paper comes last."""
    rows = [COLUMNS, *(tuple(str(c[k]) for k in COLUMNS) for c in cards)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Prints the registry; 0 when done, exit status 2 for an argument that is not valid."""
    parser = spec.Arguments(prog="fedjax_lab.methods", description="Every method and part of the library.")
    parser.add_argument("--json", action="store_true", help="a list of objects with the options of each")
    as_json = parser.parse_args(argv).json
    cards = [card(factory) for factory in registry.systems().values()]
    print(json.dumps(cards, indent=2) if as_json else table(cards))
    return 0


if __name__ == "__main__":
    sys.exit(main())
