"""The grammar of flag values, and options typed from a factory's signature.

`NAME[:VALUE][,arg=value...]` names an item of a registry and its options: `dirichlet:0.3,sizes=lognormal`. A bare VALUE is the
first option. The options of a factory are its keyword-only arguments and its arguments with a default; what comes before them is
given by the caller. `--help`, `--list` and the flags themselves read the same signature, so nothing is said twice.

    name, positional, values = parse("dirichlet:0.3,sizes=lognormal")
    factory = choose("partition", name, PARTITIONS)
    options = bind(factory, positional, values, name=name)          # {"alpha": 0.3, "sizes": "lognormal"}
"""
from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple


class Range(NamedTuple):
    """The numbers between low and high; `open` names the ends that are left out: "", "low", "high" or "both"."""

    low: float = -math.inf
    high: float = math.inf
    open: str = ""

    def holds(self, x: float) -> bool:
        """Whether x is in the range."""
        above = x > self.low if self.open in ("low", "both") else x >= self.low
        return above and (x < self.high if self.open in ("high", "both") else x <= self.high)

    def __str__(self) -> str:
        low = [] if self.low == -math.inf else [f"{'>' if self.open in ('low', 'both') else '>='} {self.low:g}"]
        high = [] if self.high == math.inf else [f"{'<' if self.open in ('high', 'both') else '<='} {self.high:g}"]
        return " and ".join(low + high)


Positive = Annotated[float, Range(0, open="low")]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]


class Option(NamedTuple):
    """One option of a factory: its type in words, its default (None where `required`) and its line of help."""

    name: str
    type: str
    default: Any
    help: str
    required: bool = False


def parse(text: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Splits `NAME[:VALUE][,arg=value...]`, `NAME:arg=value,...` or `NAME,arg=value`.

    Returns:
      The name, the bare values (none or one) and the named values, all as text.

    Raises:
      ValueError: no name, an empty item, a bare value that is not the first, or an option given twice.
    """
    head, colon, rest = re.match(r"\s*([^:,=]*)(:|,|$)?(.*)", text, re.DOTALL).groups()
    name, items = head.strip(), rest.split(",") if colon else []
    if not name or (not colon and rest):
        raise ValueError(f"'{text}' has no name; expected NAME[:VALUE][,arg=value...]")
    positional, values = [], {}
    for i, item in enumerate(items):
        named = re.match(r"\s*([A-Za-z_]\w*)\s*=(.*)", item, re.DOTALL)
        if named and named[1] in values:
            raise ValueError(f"'{text}' gives option '{named[1]}' twice")
        if named:
            values[named[1]] = named[2].strip()
        elif i or not item.strip() or colon == ",":
            raise ValueError(f"'{text}': '{item}' is not arg=value; only the first value after ':' may be bare")
        else:
            positional.append(item.strip())
    return name, tuple(positional), values


def chain(text: str) -> tuple[str, ...]:
    """Splits "a:1+b:2" into its items; the sign of an exponent (1e+3) does not split. An empty text is no item."""
    items = tuple(item.strip() for item in re.split(r"(?<![0-9.][eE])\+", text)) if text.strip() else ()
    if not all(items):
        raise ValueError(f"'{text}' has an empty item; expected NAME[:VALUE] joined by '+'")
    return items


def choose(what: str, name: str, valid: Mapping[str, Any]) -> Any:
    """The item of that name.

    Raises:
      ValueError: there is none; the line lists the valid names and the nearest one.
    """
    if name not in valid:
        raise ValueError(f"unknown {what} '{name}'; valid: {nearest(name, valid)}")
    return valid[name]


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid names in one line, with the one that was probably meant."""
    near = difflib.get_close_matches(name, list(valid), 1, 0.5)
    return (", ".join(valid) or "none") + (f"; did you mean '{near[0]}'?" if near else "")


class Arguments(argparse.ArgumentParser):
    """argparse, where what is not valid is one line and exit status 2, and an unknown flag comes with the nearest valid one."""

    def __init__(self, **more: Any):
        super().__init__(allow_abbrev=False, **more)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        args = sys.argv[1:] if args is None else list(args)
        known = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
        for word in args[: args.index("--") if "--" in args else len(args)]:
            name = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and name not in known:
                self.error(f"unknown flag --{name}; valid: {nearest(name, known)}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}\n")


def bind(factory: Callable, positional: Sequence[Any] = (), values: Mapping[str, Any] = {}, *, name: str = "") -> dict[str, Any]:
    """Values typed by the factory's signature.

    Args:
      factory: a function whose options are annotated with int, float, bool, str, Literal, tuple[X, ...] (written a/b/c), unions
        of them, None (written none), or Annotated with a Range.
      positional: bare values, for the first options in the order of the signature.
      values: further options by name. Text is read; a Python value of the right type passes as it is.
      name: how the factory is called in messages; its own name by default.

    Returns:
      The keyword arguments to call the factory with.

    Raises:
      ValueError: an unknown, missing, doubly given, ill-typed or out-of-range option, in one line.
    """
    name, kinds = name or _plain(factory).__name__, _kinds(factory)
    if len(positional) > len(kinds):
        raise ValueError(f"'{name}' takes at most {len(kinds)} values; got {', '.join(map(str, positional))}")
    given = dict(zip(kinds, positional))
    for key, value in values.items():
        if key not in kinds:
            raise ValueError(f"'{name}' has no option '{key}'; valid: {nearest(key, kinds)}")
        if key in given:
            raise ValueError(f"'{name}' gets option '{key}' twice: {given[key]} and {value}")
        given[key] = value
    missing = [option.name for option in options(factory) if option.required and option.name not in given]
    if missing:
        raise ValueError(f"'{name}' needs option '{missing[0]}' ({describe(kinds[missing[0]])})")
    return {key: convert(kinds[key], value, f"option '{key}' of '{name}'") for key, value in given.items()}


def build(what: str, text: str, registry: Mapping[str, Callable], *args: Any, **more: Any) -> Any:
    """Calls the item that a text names: `registry[name](*args, **options, **more)`."""
    name, positional, values = parse(text)
    factory = choose(what, name, registry)
    return factory(*args, **bind(factory, positional, values, name=name), **more)


def convert(kind: Any, value: Any, what: str = "value") -> Any:
    """The value as that type.

    Raises:
      ValueError: it is not of that type or out of its range; `what` opens the line.
    """
    import jax  # here, since launchers read their flags without it

    if isinstance(value, jax.core.Tracer):
        return value  # one of many runs; its values were checked before they were traced
    for leaf, ranges in _leaves(kind):
        try:
            result = _read(leaf, value)
        except (ValueError, TypeError):
            continue
        numbers = result if isinstance(result, tuple) else (result,)
        if all(r.holds(x) for r in ranges for x in numbers):
            return result
    raise ValueError(f"{what}: '{value}' is not valid; expected {describe(kind)}")


def describe(kind: Any) -> str:
    """A type in words, for messages and help."""
    words = [" ".join([_noun(leaf), *map(str, ranges)]) for leaf, ranges in _leaves(kind)]
    return " or ".join(sorted(dict.fromkeys(words), key=lambda word: word == "none"))


def options(factory: Callable) -> list[Option]:
    """The options of a factory, in the order of its signature, with help from the Args section of its docstring."""
    parameters, texts = inspect.signature(factory).parameters, _help(_plain(factory).__doc__ or "")
    defaults = {name: parameters[name].default for name in _kinds(factory)}
    needed = {name: default is inspect.Parameter.empty for name, default in defaults.items()}
    return [Option(name, describe(kind), None if needed[name] else defaults[name], texts.get(name, ""), needed[name])
            for name, kind in _kinds(factory).items()]


def _plain(factory: Callable) -> Callable:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return inspect.unwrap(factory)


def _kinds(factory: Callable) -> dict[str, Any]:
    """{option: annotation} of the options that can be written as text."""
    hints = typing.get_type_hints(_plain(factory), include_extras=True)
    wanted = [p.name for p in inspect.signature(factory).parameters.values()
              if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty)]
    return {name: hints[name] for name in wanted if name in hints and any(leaf is not None for leaf, _ in _leaves(hints[name]))}


def _leaves(kind: Any, ranges: tuple[Range, ...] = ()) -> list[tuple[Any, tuple[Range, ...]]]:
    """The alternatives of a type that text can express, each with its ranges."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _leaves(args[0], ranges + tuple(a for a in args[1:] if isinstance(a, Range)))
    if origin in (typing.Union, types.UnionType):
        return sorted((leaf for arg in args for leaf in _leaves(arg, ranges)), key=lambda leaf: leaf[0] is not None)
    if kind is type(None):
        return [(None, ())]
    if origin is tuple and args:
        return [(kind, ranges)] if _leaves(args[0]) else []
    return [(kind, ranges)] if origin is Literal or kind in (int, float, bool, str) else []


def _read(leaf: Any, value: Any) -> Any:
    """One alternative of a type, from text or from a Python value; ValueError where it does not fit."""
    if leaf is None:
        return _word(value, {"none": None})
    if leaf is bool:
        return _word(value, {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False})
    if typing.get_origin(leaf) is Literal:
        return _word(value, {str(choice).lower(): choice for choice in typing.get_args(leaf)})
    if typing.get_origin(leaf) is tuple:
        items = value.split("/") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else (value,)
        return tuple(convert(typing.get_args(leaf)[0], item) for item in items)
    if isinstance(value, bool) or (leaf is str and not isinstance(value, str)) or (leaf is int and isinstance(value, float)):
        raise ValueError
    result = leaf(value)
    if leaf is float and math.isnan(result):
        raise ValueError
    return result


def _word(value: Any, words: Mapping[str, Any]) -> Any:
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _noun(leaf: Any) -> str:
    if typing.get_origin(leaf) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(leaf)))
    if typing.get_origin(leaf) is tuple:
        return describe(typing.get_args(leaf)[0]) + ", several as a/b/c"
    return {int: "int", float: "float", bool: "true/false", str: "text", None: "none"}[leaf]


def _help(doc: str) -> dict[str, str]:
    """{argument: text} of a docstring's Args section."""
    lines, texts, names, indent = inspect.cleandoc(doc).split("\n"), {}, (), None
    start = next((i for i, line in enumerate(lines) if line.strip() == "Args:"), len(lines))
    for line in lines[start + 1:]:
        if line.strip() and not line.startswith(" "):
            break
        deep = len(line) - len(line.lstrip())
        indent = deep if indent is None and line.strip() else indent
        entry = re.match(r"(\w+(?:, \w+)*): (.*)", line.strip()) if deep == indent else None
        if entry:
            names = entry[1].split(", ")
            texts.update(dict.fromkeys(names, entry[2]))
        else:
            texts.update({name: f"{texts[name]} {line.strip()}".strip() for name in names})
    return texts
