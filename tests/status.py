"""Writes tests/STATUS.md from the registry: which systems are done, tested and measured. Run it after adding one: python tests/status.py"""
from __future__ import annotations

import json
import pathlib
import re

from fedjax_lab import registry

TESTS = pathlib.Path(__file__).parent
CLAIMS = TESTS.parent / "experiments" / "CLAIMS.json"


def table() -> str:
    """The whole file."""
    rows = json.loads(CLAIMS.read_text()) if CLAIMS.exists() else []
    measured = {name for row in rows for name in (row["method"], row["claim"].partition("/")[0])}  # a wire's or a rule's has a method beside it
    lines = [
        "# Systems", "",
        "Written by `python tests/status.py`. Oracle: an independent numpy implementation that the engine equals over several rounds;",
        "tests: files that name the system beside the contract matrix, which covers every method; measured: rows in experiments/CLAIMS.json.", "",
        "| system | kind | family | year | oracle | tests | measured |", "|---|---|---|---|---|---|---|",
    ]
    for name, factory in registry.systems().items():
        info = factory.info
        cells = [f"`{name}`", info.kind, info.family, str(info.year), _mark(_oracle(name)), ", ".join(_tests(name)) or "-", _mark(name in measured)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mark(yes: bool) -> str:
    return "yes" if yes else "-"


def _oracle(name: str) -> bool:
    return (TESTS / "methods" / "oracles" / f"{name.replace('-', '_')}.py").exists()


def _tests(name: str) -> list[str]:
    module = registry.catalog()[name].__module__.rsplit(".", 1)[-1]
    found = {p.name for stem in (module, name.replace("-", "_")) for p in TESTS.glob(f"*/test_{stem}.py")}
    ways = [("engine", "methods")] if registry.catalog()[name].info.kind == "method" else [("parts",), ("methods",)]
    for folders in ways:
        if not found:
            files = (p for folder in folders for p in (TESTS / folder).glob("test_*.py") if p.stem != "test_oracles")
            found = {p.name for p in files if re.search(rf"\b({name}|{name.replace('-', '_')})\b", p.read_text())}
    return sorted(found)


if __name__ == "__main__":
    (TESTS / "STATUS.md").write_text(table())
