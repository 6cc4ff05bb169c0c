"""Method -> Method: the server's step along the mean change is taken by a server optimizer."""
from __future__ import annotations

from typing import NamedTuple

from fedjax_lab import tree
from fedjax_lab.parts.servers.optimizers import Server, advance
from fedjax_lab.types import Method, Phase, Tree


class Served(NamedTuple):
    """server: the base method's own state.  optimizer: the server optimizer's."""

    server: Tree
    optimizer: Tree


def served(method: Method, optimizer: Server) -> Method:
    """The method, where `optimizer` takes the step that the method's own `serve` proposes.

    What the method keeps beside its model is untouched. Of several phases it is the last whose step is replaced. The method's server
    state is its parameters, or a NamedTuple that holds them as `params`.
    """

    def init_server(key, params, census):
        base = method.init_server(key, params, census)
        return Served(base, optimizer.init(method.deploy(base)))

    def relayed(phase: Phase, last: bool) -> Phase:
        def serve(key, state, aggregate, cohort):
            proposed = phase.serve(key, state.server, aggregate, cohort)
            if not last:
                return state._replace(server=proposed)
            x = method.deploy(state.server)
            memory, params = advance(optimizer, state.optimizer, x, tree.sub(method.deploy(proposed), x))
            return Served(_with_params(proposed, params), memory)

        return phase._replace(broadcast=lambda state, client, clock: phase.broadcast(state.server, client, clock), serve=serve)

    exchanges = method.exchanges
    phases = [relayed(phase, i == len(exchanges) - 1) for i, phase in enumerate(exchanges)]
    own = None if method.personal is None else lambda key, state, client, data: method.personal(key, state.server, client, data)
    return method.rephased(phases, init_server=init_server, deploy=lambda state: method.deploy(state.server), personal=own)


def _with_params(server: Tree, params: Tree) -> Tree:
    return server._replace(params=params) if hasattr(server, "_fields") else params
