"""What transformers of methods have in common."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedjax_lab.types import Method, Phase


def rephased(method: Method, phases: Sequence[Phase], **fields: Any) -> Method:
    """The method with other phases in place of its `exchanges`, as many as there are, and other fields."""
    if method.phases:
        return method._replace(phases=tuple(phases), **fields)
    shared = {name: value for name, value in phases[0]._asdict().items() if name in Method._fields}
    return method._replace(**shared, **fields)
