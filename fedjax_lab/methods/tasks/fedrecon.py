"""Federated Reconnaissance: clients meet new classes, and the server learns them all from class means of a frozen encoder.

Hendryx, KC, Walls, Morrison, "Federated Reconnaissance: Efficient, Distributed, Class-Incremental Learning", 2021.

    (1)  e <- e - Adam( grad CE( softmax_j -||e(q) - c_j||^2 ) )    once, at the server: `episodes` of its public examples, with `ways`
         classes, c_j the mean of `shots` embeddings of class j and q of `queries` others; then P, n of all public classes as in (2)
    (2)  a mission: m_j the mean and b_j the number of the client's embeddings of class j;  P_j <- P_j + (b_j / (n_j + b_j)) (m_j - P_j)
    (3)  merge: the server does (2) with the mean and the number of all that was sent;  n_j <- n_j + b_j
    (4)  the class of x is argmin_j ||e(x) - P_j||^2 over all classes with n_j > 0

Keeps: P_j is the mean of all embeddings of class j that anybody has seen, in whatever order and by whomever; a mission without class j
leaves P_j as it was.
Reduces to: the nearest class mean of all examples, once every client has been drawn.
Departs: a client's examples count in its first mission only. Several missions in a round are merged at once, which is the same. The
encoder is known to all before the first mission, so no message has it. The paper's other distances and the noise on prototypes are left
out, and the client's own copy (2) serves for its loss alone. With `legacy` a client sends its P_j of (2) in the place of m_j, as the
published code does, and old examples weigh too much. Only lr and client_optimizer say how (1) is trained: in the field nobody trains.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import rules
from fedjax_lab.local import Work
from fedjax_lab.parts import examples, proxy, split
from fedjax_lab.parts.lengths import unit as unit_length
from fedjax_lab.parts.prototypes import Episodes, Prototypes
from fedjax_lab.parts.transforms.outputs import demand
from fedjax_lab.parts.wires.plain import known, rows_unless_zero
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Method, Result, Task, Tree

NO_MODEL = "no model is sent, only class means"


class Model(NamedTuple):
    """encoder: parameters of the task;  classes: P and n."""

    encoder: Tree
    classes: Prototypes


@method(family="tasks", paper="Federated Reconnaissance: Efficient, Distributed, Class-Incremental Learning", year=2021, stateful=True,
        refuses={"wire_up": NO_MODEL, "wire_down": NO_MODEL, "aggregator": NO_MODEL, "server": NO_MODEL}, lr=1e-3, client_optimizer="adam")
def fedrecon(task: Task, work: Work, *, episodes: Annotated[int, Range(0)] = 300, ways: Count = 5, shots: Count = 5, queries: Count = 15,
             unit: bool = False, legacy: bool = False) -> Method:
    """Classes are told apart by the nearest mean of embeddings, and clients send the means of the classes they meet.

    Args:
      episodes: steps of the encoder on the public examples before the first mission; 0 takes the encoder as it is.
      ways: classes in an episode, all public ones where there are fewer.
      shots: examples of a class that make its mean in an episode.
      queries: further examples of a class that are told apart in it.
      unit: embeddings are scaled to length 1.
      legacy: clients send what their means and the server's make together, as the published code does.
    """
    demand("fedrecon", task)

    def embed(encoder, batch):
        z = task.features(encoder, batch)
        z = z.reshape(z.shape[0], -1)
        return unit_length(z) if unit else z

    def prepare(key, server, aggregate, cohort):
        public, classes = cohort.public, len(server.classes.number)

        def episode(i, carry):  # (1)
            encoder, state = carry
            drawn = Episodes(ways, shots, queries)
            slope = jax.grad(lambda e: drawn.loss(jax.random.fold_in(key, i), lambda batch: embed(e, batch), public, classes))(encoder)
            update, state = work.optimizer.update(slope, state, encoder)
            return optax.apply_updates(encoder, update), state

        def trained():
            encoder, _ = jax.lax.fori_loop(0, episodes, episode, (server.encoder, work.optimizer.init(server.encoder)))
            number, mean, _ = split.by_class(embed(encoder, public), public["y"], jnp.ones(len(public["y"]), bool), classes)
            return Model(encoder, server.classes.merged(mean, number))

        return jax.lax.cond(cohort.clock == 0, trained, lambda: server) if public else server

    def mission(key, message, been, data):
        batch, told = data.train.whole(), message["classes"]
        z = embed(message["encoder"], batch)
        number, mean, _ = split.by_class(z, batch["y"], batch["mask"], len(told.number))
        own = told.merged(mean, number)  # (2)
        loss = examples.mean(task.metrics(own.nearness(z), batch)["loss"], batch["mask"])
        fresh = jnp.where(been, 0, number)
        found = Prototypes(jnp.where(fresh[:, None] > 0, own.mean if legacy else mean, 0), fresh)
        return Result({"classes": found}, {"classes": Prototypes(fresh[:, None], 1.0)}, jnp.ones_like(been), metrics={"loss": loss})

    def merge(key, server, aggregate, cohort):
        total, number = aggregate["classes"]
        return server._replace(classes=server.classes.merged(total / jnp.maximum(number, 1)[:, None], number))  # (3)

    def init_server(key, params, census):
        classes = split.demand_classes("fedrecon", task, census)
        if episodes:
            proxy.demanded("fedrecon", census, 2)
        width = jax.eval_shape(embed, params, census.batch()).shape[1]
        return Model(params, Prototypes(jnp.zeros((classes, width)), jnp.zeros(classes)))

    def apply(model, batch, key=None):
        return model.classes.nearness(embed(model.encoder, batch))  # (4)

    made = Method(mission, init_server=init_server, init_client=lambda key, params, facts: jnp.zeros((), bool), serve=merge,
                  broadcast=lambda server, client, clock: server._asdict(), aggregate={"classes": rules.total()},
                  up={"classes": rows_unless_zero()}, down={"encoder": known()}, steps=lambda size: jnp.minimum(size, 1))
    first = made.phase(local=lambda key, message, been, data: Result({}, 0.0, been), broadcast=lambda server, client, clock: {}, serve=prepare,
                       aggregate={}, up={}, down={}, when=lambda key, clock: clock == 0)
    return made._replace(phases=(first, made.phase()), task=task._replace(apply=apply, features=None, head=None))
