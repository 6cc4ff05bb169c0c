"""Method -> Method: what the server does with the step that the method's own `serve` proposes, such as a server optimizer that takes it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_lab import rules, tree
from fedjax_lab.parts.aggregators.together import Stack, together
from fedjax_lab.parts.servers.optimizers import Server, advance
from fedjax_lab.types import Census, Cohort, Key, Method, Phase, Stacked, Tree

FIELD = "model"
Init = Callable[[Key, Tree, Census], Tree]
"""(key, params, census) -> the memory at the start."""

Step = Callable[[Key, Tree, Tree, Tree, Mapping[str, Any], Cohort], tuple[Tree, Tree]]
"""(key, memory, params before the round, params proposed, {field: aggregate}, cohort) -> (memory, params)."""


class Served(NamedTuple):
    """server: the base method's own state.  memory: of the step after it, such as a server optimizer's."""

    server: Tree
    memory: Tree


class Both(NamedTuple):
    """mean: what the method's own rule makes of the field "model".  stack: all uploads of it."""

    mean: Tree
    stack: Stack


def served(method: Method, optimizer: Server) -> Method:
    """The method, where `optimizer` takes the step that the method's own `serve` proposes.

    What the method keeps beside its model is untouched. Of several phases it is the last whose step is replaced. The method's server
    state is its parameters, or a NamedTuple that holds them as `params`.
    """

    def step(key, memory, x, proposed, aggregate, cohort):
        return advance(optimizer, memory, x, tree.sub(proposed, x))

    return followed(method, lambda key, params, census: optimizer.init(params), step)


def followed(method: Method, init: Init, step: Step, *, stacked: bool = False) -> Method:
    """The method, whose server's model is in each round what `step` makes of the one that the method's own `serve` proposes; see `served`.

    Args:
      method: with a server state as `served` has it.
      init: makes the memory of the step.
      step: after the method's last phase.
      stacked: the step's aggregate of the field "model" is Both, the method's own and all uploads.
    """

    def init_server(key, params, census):
        base = method.init_server(key, params, census)
        return Served(base, init(key, method.deploy(base), census))

    def relayed(phase: Phase, last: bool) -> Phase:
        def serve(key, state, aggregate, cohort):
            heard = {**aggregate, FIELD: aggregate[FIELD].mean} if stacked and last else aggregate
            proposed = phase.serve(key, state.server, heard, cohort)
            if not last:
                return state._replace(server=proposed)
            x = method.deploy(state.server)
            memory, params = step(key, state.memory, x, method.deploy(proposed), aggregate, cohort)
            return Served(_with_params(proposed, params), memory)

        rule = {FIELD: _both(phase.aggregate.get(FIELD, rules.mean()))} if stacked and last else {}
        return phase._replace(broadcast=lambda state, client, clock: phase.broadcast(state.server, client, clock), serve=serve,
                              aggregate={**phase.aggregate, **rule})

    exchanges = method.exchanges
    phases = [relayed(phase, i == len(exchanges) - 1) for i, phase in enumerate(exchanges)]
    own = None if method.personal is None else lambda key, state, client, data: method.personal(key, state.server, client, data)
    return method.rephased(phases, init_server=init_server, deploy=lambda state: method.deploy(state.server), personal=own)


def _both(rule: Any) -> Stacked:
    return Stacked(lambda stack, weight, cohort: Both(rules.stacked(rule).combine(stack, weight, cohort), together().combine(stack, weight, cohort)))


def _with_params(server: Tree, params: Tree) -> Tree:
    return server._replace(params=params) if hasattr(server, "_fields") else params
