"""Methods whose server remembers more than its model."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedjax_lab.types import Census, Method, Tree


def stateful(
    local: Callable,
    serve: Callable,
    server: Callable[[Tree, Census], Tree],
    client: Callable[[Tree], Tree] | None = None,
    sends: tuple[str, ...] = (),
    **more: Any,
) -> Method:
    """A Method whose server state is a record with the model as its field `params`.

    Args:
      local, serve: as in Method.
      server: (params, census) -> the record.
      client: (params) -> the row of every client, none by default.
      sends: fields of the record that go out under their names, beside the field "model", which is `params`.
      more: further fields of Method.
    """
    rows = {} if client is None else {"init_client": lambda key, params, facts: client(params)}
    fields = {
        "init_server": lambda key, params, census: server(params, census),
        "broadcast": lambda state, id, clock: {"model": state.params, **{name: getattr(state, name) for name in sends}},
        "deploy": lambda state: state.params,
    }
    return Method(local, serve=serve, **{**rows, **fields, **more})
