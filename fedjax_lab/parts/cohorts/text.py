"""Who takes part, from one flag: `--participation=uniform+dropout:0.1+stragglers:0.3,steps=0.5`."""
from __future__ import annotations

import inspect
from collections.abc import Callable

from fedjax_lab import registry, spec
from fedjax_lab.types import Participation


def from_text(text: str, clients: int, cohort: int) -> Participation:
    """The scheme that a text names first, changed by what it names after, from left to right.

    A registered scheme is a `factory(clients, cohort, *, ...)`; what changes one is a `factory(inner, *, ...)`.

    Args:
      text: NAME[:VALUE][,arg=value...], joined by '+'.
      clients: N.
      cohort: how many clients a round has, where a scheme asks.

    Raises:
      ValueError: an unknown name or option, a value that is not valid, or an order that makes no sense, in one line.
    """
    known = registry.catalog("participation")
    schemes, changes = ({name: f for name, f in known.items() if _changes(f) == wanted} for wanted in (False, True))
    try:
        items = spec.chain(text)
        names = [spec.parse(item)[0] for item in items]
        for name in names:
            spec.choose("participation", name, known)
        if not names or names[0] not in schemes or any(name in schemes for name in names[1:]) or len(set(names)) < len(names):
            raise ValueError(f"expected one of {', '.join(schemes)}, then each of {', '.join(changes)} once if at all, joined by '+'")
        found = spec.build("participation", items[0], schemes, clients, cohort)
        for item in items[1:]:
            found = spec.build("participation", item, changes, found)
        return found
    except ValueError as error:
        raise ValueError(f"--participation={text}: {error}") from None


def _changes(factory: Callable) -> bool:
    """Whether a registered factory changes another scheme."""
    return next(iter(inspect.signature(factory).parameters)) == "inner"
