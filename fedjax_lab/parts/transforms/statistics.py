"""How clients share normalization statistics, the sub-tree "stats" of the parameters that a loss returns anew (types.Aux).

averaged   without a word: they are part of the model, and the server's are the mean of the clients', whatever rate or momentum the
           server has for the rest (parts/moving.py).
local      every client goes on from its own, and the server's stay what they were (SiloBN, Andreux et al., DCL 2020; where scale and
           bias stay at home too it is FedBN, Li et al., ICLR 2021).
frozen     nobody changes them, and the model normalizes by them in training as in evaluation.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.parts.clients import heard
from fedjax_lab.types import Method, Phase, Task, Tree


class Shown(NamedTuple):
    """server: the base method's own state.  stats: the mean of the last cohort's statistics, for evaluation."""

    server: Tree
    stats: Tree


class Kept(NamedTuple):
    """row: the base method's own row.  stats: the client's statistics."""

    row: Tree
    stats: Tree


def present(task: Task) -> bool:
    """Whether the task's model has statistics."""
    return _holds(jax.eval_shape(task.init, jax.random.key(0)))


def frozen(task: Task) -> Task:
    """The task whose training normalizes by the statistics that there are and leaves them alone.

    What else a key switches on in the model, such as dropout, is off with it.
    """
    features = None if task.features is None else lambda params, batch, key=None: task.features(params, batch)
    return task._replace(loss=lambda params, batch, key: task.loss(params, batch, None), features=features,
                         apply=lambda params, batch, key=None: task.apply(params, batch))


def local(method: Method) -> Method:
    """The method, where every client keeps its statistics. Apply it last.

    A client starts from those of the initialization. The field "model" carries none in either direction, and what the method's server
    has of them never changes. Personal models are evaluated with the client's own. For the global model they come as a field of the
    upload, "stats"; their mean over the last cohort, weighted by examples, is kept beside the server for its evaluation alone, and no
    client ever receives it.
    """

    def init_server(key, params, census):
        return Shown(method.init_server(key, params, census), _of(params))

    def init_client(key, params, facts):
        return Kept(method.init_client(key, params, facts), _of(params))

    def personal(key, state, row, data):
        if method.personal is None:
            return {**method.deploy(state.server), "stats": row.stats}
        own = jax.tree.map(lambda part: {**part, "stats": row.stats} if _holds(part) else part, state.server, is_leaf=_holds)
        return method.personal(key, own, row.row, data)

    return method.rephased(
        [_keeping(phase) for phase in method.exchanges], init_server=init_server, init_client=init_client, personal=personal,
        deploy=lambda state: {**method.deploy(state.server), "stats": state.stats}, info=method.info._replace(stateful=True),
    )


def _keeping(phase: Phase) -> Phase:
    def broadcast(state, client, clock):
        return _each(phase.broadcast(state.server, client, clock), _without)

    def train(key, message, row, data):
        result = phase.local(key, _each(message, lambda model: {**model, "stats": row.stats}), row.row, data)
        if not _holds(result.upload.get("model")):
            return result._replace(client=row._replace(row=result.client))
        stats = tree.add(row.stats, result.upload["model"]["stats"])
        weight = result.weight if isinstance(result.weight, Mapping) else dict.fromkeys(result.upload, result.weight)
        return result._replace(
            upload={**_each(result.upload, _without), "stats": stats}, client=Kept(result.client, stats),
            weight={**_each(weight, _without), "stats": data.size.astype(jnp.float32)},
        )

    def serve(key, state, aggregate, cohort):
        if "stats" not in aggregate:
            return state._replace(server=phase.serve(key, state.server, aggregate, cohort))
        still = _each(aggregate, lambda change: {**change, "stats": tree.zeros_like(state.stats)})
        server = phase.serve(key, state.server, {k: v for k, v in still.items() if k != "stats"}, cohort)
        return Shown(server, tree.select(heard(cohort) > 0, aggregate["stats"], state.stats))

    return phase._replace(broadcast=broadcast, local=train, serve=serve)


def _of(params: Tree) -> Tree:
    if not _holds(params):
        raise ValueError("statistics 'local' needs a model with normalization statistics, such as a resnet8 with norm=batch; this one has none")
    return params["stats"]


def _holds(part: Any) -> bool:
    return isinstance(part, Mapping) and "stats" in part


def _without(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "stats"} if _holds(part) else part


def _each(fields: Mapping[str, Tree], change: Callable[[Tree], Tree]) -> dict[str, Tree]:
    """The fields, the one named "model" changed, if there is one."""
    return {k: change(v) if k == "model" else v for k, v in fields.items()}
