"""What happens once: exchanges with all clients before the first round."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_lab.types import Method, Phase, Result, Tree, Wire


def unchanged(key: Any, server: Tree, aggregate: Mapping[str, Tree], cohort: Any) -> Tree:
    """A `serve` that leaves the server as it is."""
    return server


def once(method: Method, local: Callable[..., Result], sends: tuple[str, ...] = ("model",), *, serve: Callable[..., Tree] = unchanged,
         aggregate: Mapping[str, Any] | None = None, up: Mapping[str, Wire] | None = None, down: Mapping[str, Wire] | None = None) -> Phase:
    """A phase with all N clients at the start of the first round, and never again.

    Args:
      method: the method that it belongs to.
      local: as in Method.
      sends: fields of the server's state that go out under their names; "model" is its field `params`.
      serve, aggregate, up, down: as in Method.
    """

    def broadcast(server, client, clock):
        return {name: getattr(server, "params" if name == "model" else name) for name in sends}

    return method.phase(local=local, broadcast=broadcast, serve=serve, aggregate=aggregate or {}, up=up or {}, down=down or {}, everyone=True,
                        when=lambda key, clock: clock == 0)


def tell(method: Method, *fields: str) -> Phase:
    """Fields of the server's state go out to everybody, once."""
    return once(method, lambda key, message, row, data: Result({}, 0.0, row), fields)
