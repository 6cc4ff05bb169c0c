"""Models of which a part stays at home: chosen leaves are every client's own affair, and only the rest is sent and averaged.

The field "model" of messages and uploads is {path: leaf} of the shared leaves then. The client of the base method trains whole models,
and its server never learns of the cut: the private leaves it holds stay what they were at the start.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.parts.leaves import paths
from fedjax_lab.types import Method, Phase, Task, Tree


class Own(NamedTuple):
    """row: the base method's own row.  private: {path: leaf}, the client's leaves."""

    row: Tree
    private: Mapping[str, jax.Array]


class Cut(NamedTuple):
    """A model in two parts. like: the model's shapes;  private: {path: bool}, which leaves are the client's."""

    like: Tree
    private: Mapping[str, bool]

    def part(self, model: Tree, private: bool) -> dict[str, jax.Array]:
        """{path: leaf} of one part."""
        return {path: leaf for path, leaf in paths(model).items() if self.private[path] == private}

    def join(self, shared: Mapping[str, jax.Array], private: Mapping[str, jax.Array]) -> Tree:
        """The model of two parts."""
        leaves = {**shared, **private}
        return jax.tree.unflatten(jax.tree.structure(self.like), [leaves[path] for path in paths(self.like)])

    def shared_only(self, shared: Mapping[str, jax.Array]) -> Tree:
        """A model with zeros for private leaves."""
        return self.join(shared, {k: jnp.zeros(v.shape, v.dtype) for k, v in self.part(self.like, True).items()})


def cut(task: Task, private: Callable[[Tree], Tree]) -> Cut:
    """The task's model in two parts.

    Args:
      private: (params) -> bools of the same structure, such as `leaves.named`; it sees shapes only.
    """
    like = jax.eval_shape(task.init, jax.random.key(0))
    return Cut(like, {path: bool(mark) for path, mark in paths(private(like)).items()})


def split(method: Method, halves: Cut) -> Method:
    """The method, where the private leaves of the model stay with the clients.

    A client starts from those of the initialization; its personal model is the server's with its own leaves.

    Raises:
      ValueError: the method has personal models of its own.
    """
    if method.personal is not None:
        raise ValueError(f"'{method.info.name}' has personal models of its own; its model cannot be split as well")

    def init_client(key, params, facts):
        return Own(method.init_client(key, params, facts), halves.part(params, True))

    def personal(key, server, client, data):
        return halves.join(halves.part(method.deploy(server), False), client.private)

    return method.rephased([_halved(phase, halves) for phase in method.exchanges], init_client=init_client, personal=personal)


def _halved(phase: Phase, halves: Cut) -> Phase:
    def broadcast(server, client, clock):
        return _each(phase.broadcast(server, client, clock), lambda model: halves.part(model, False))

    def local(key, message, client, data):
        whole = _each(message, lambda shared: halves.join(shared, client.private))
        result = phase.local(key, whole, client.row, data)
        if "model" not in result.upload:
            return result._replace(client=client._replace(row=result.client))
        private = tree.add(client.private, halves.part(result.upload["model"], True))
        return result._replace(upload=_each(result.upload, lambda change: halves.part(change, False)), client=Own(result.client, private))

    def serve(key, server, aggregate, cohort):
        return phase.serve(key, server, _each(aggregate, halves.shared_only), cohort)

    return phase._replace(broadcast=broadcast, local=local, serve=serve)


def _each(fields: Mapping[str, Tree], change: Callable[[Tree], Tree]) -> dict[str, Tree]:
    """The fields, the one named "model" changed, if there is one."""
    return {k: change(v) if k == "model" else v for k, v in fields.items()}
