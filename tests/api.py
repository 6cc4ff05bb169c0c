"""Writes tests/api.txt, the public names with their signatures. Run it after changing them on purpose: python tests/api.py"""
from __future__ import annotations

import importlib
import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

import fedjax_lab

FILE = pathlib.Path(__file__).parent / "api.txt"


def public() -> Iterator[tuple[str, Any]]:
    """(dotted name, object) of everything public."""
    for name in fedjax_lab.HERE:
        yield f"fedjax_lab.{name}", getattr(fedjax_lab, name)
    for module, names in fedjax_lab.THERE.items():
        for name in names:
            yield f"fedjax_lab.{module}.{name}", getattr(importlib.import_module(f"fedjax_lab.{module}"), name)


def lines(name: str, thing: Any) -> list[str]:
    """A function with its parameters, a record with its fields and its own methods below it; defaults are shown as "=...".

    What is no function or record of the library is shown by its name alone.
    """
    if not getattr(thing, "__module__", "").startswith("fedjax_lab") or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return [name]
    if not inspect.isclass(thing):
        return [f"{name}({_parameters(thing)})"]
    own = {k: v for k, v in vars(thing).items() if not k.startswith("_") and k not in inspect.signature(thing).parameters}
    methods = [f"{name}.{k}({_parameters(v)})" for k, v in own.items() if inspect.isfunction(v)]
    return [f"{name}({_parameters(thing)})", *methods, *(f"{name}.{k}" for k, v in own.items() if isinstance(v, property))]


def _parameters(thing: Any) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    words = [stars.get(p.kind, "") + p.name + ("" if p.default is p.empty else "=...") for p in found]
    first = next((at for at, p in enumerate(found) if p.kind is p.KEYWORD_ONLY), len(found))
    return ", ".join([*words[:first], *(["*"] if first < len(found) else []), *words[first:]])


def text() -> str:
    """What belongs into the file."""
    return "".join(f"{line}\n" for name, thing in public() for line in lines(name, thing))


if __name__ == "__main__":
    FILE.write_text(text())
