"""FedMD: clients with models of their own learn from each other's scores on public examples; no weights move.

Li, Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", NeurIPS 2019 workshop.

    (1)  y_i trains on the public examples, then on its own          once, before the first round
    (2)  D_t: `sample` public examples, fresh in every round and the same for all
    (3)  F = mean_i f(D_t; y_i)                                      the scores before the softmax, each client alike
    (4)  y_i <- y_i - Adam(grad mean |f(u; y_i) - F(u)|)             one epoch of D_t
    (5)  y_i <- y_i - Adam(grad F_i(y_i; b))                         on its own examples

Keeps: the scores' mean does not depend on the clients' order.
Reduces to: training alone with digest_epochs = 0 and public_epochs = 0.
Departs: every client has its own initialization, also of one architecture. Which examples D_t are follows from the
round's number, so nobody sends it. Clients that are not drawn keep their model. The global model that is evaluated is an initialization, since
there is none.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import examples, proxy
from fedjax_lab.parts.clients import owned
from fedjax_lab.parts.once import once
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree

NO_MODEL = "no model is sent, only scores"


class Server(NamedTuple):
    """params: the first ones;  scores: [D, C], the mean scores of the round's public examples."""

    params: Tree
    scores: jax.Array


@method(family="distillation", paper="FedMD: Heterogenous Federated Learning via Model Distillation", year=2019, stateful=True, several=True,
        refuses={"wire_up": NO_MODEL, "wire_down": NO_MODEL, "aggregator": NO_MODEL, "server": NO_MODEL},
        lr=1e-3, client_optimizer="adam", epochs=4)
def fedmd(task: Task, work: Work, *, sample: Count = 5000, digest_epochs: Annotated[int, Range(0)] = 1, digest_batch: Count = 256,
          digest_lr: Positive = 1e-3, public_epochs: Annotated[int, Range(0)] = 5, public_batch: Count = 128) -> Method:
    """Clients train models of their own and fit them to the mean of their scores on public examples.

    Args:
      sample: public examples in a round, all of them where there are fewer.
      digest_epochs: passes over them towards the mean scores.
      digest_batch: examples in such a step.
      digest_lr: of Adam in such a step.
      public_epochs: passes over all public examples before the first round, with their labels.
      public_batch: examples in such a step.
    """

    def first(key, message, y, data):  # (1)
        if public_epochs:
            public = proxy.epochs(keys.purpose(key, "public"), proxy.view(data.public, data.id), public_epochs, public_batch)
            y = descend(public, y, gradient(task), work.optimizer).params
        return Result({}, 1.0, descend(batches(key, data, work), y, gradient(task), work.optimizer).params)

    def chosen(data) -> Tree:  # (2)
        count = len(data.public["x"])
        rows = keys.shuffle(keys.for_round(jax.random.key(0), data.clock), jnp.arange(min(sample, count), dtype=jnp.int32), count)
        return {k: v[rows] for k, v in data.public.items()}

    def score(key, message, y, data):
        return Result({"scores": task.apply(y, proxy.view(chosen(data), data.id).whole())}, 1.0, y)

    def hold(key, server, aggregate, cohort):
        return server._replace(scores=aggregate["scores"])  # (3)

    def distance(y, batch):
        return jnp.mean(jnp.abs(task.apply(y, batch) - batch["scores"]), -1)

    def learn(key, message, y, data):
        if digest_epochs:
            taken = proxy.view({**chosen(data), "scores": message["scores"]}, data.id)
            plan = proxy.epochs(keys.purpose(key, "digest"), taken, digest_epochs, digest_batch)
            y = descend(plan, y, examples.direction(distance), optax.adam(digest_lr)).params  # (4)
        end = descend(batches(key, data, work), y, gradient(task), work.optimizer)  # (5)
        return Result({}, 1.0, end.params, metrics={"loss": end.loss})

    def init_server(key, params, census):
        proxy.demanded("fedmd", census)
        shape = jax.eval_shape(lambda: task.apply(params, census.batch(min(sample, census.public))))
        return Server(params, jnp.zeros(shape.shape, shape.dtype))

    made = Method(learn, init_server=init_server, broadcast=lambda server, client, clock: {"scores": server.scores},
                  serve=lambda key, server, aggregate, cohort: server)
    said = made.phase(local=score, broadcast=lambda server, client, clock: {}, serve=hold)
    return made._replace(phases=(once(made, first, ()), said, made.phase()), init_client=lambda key, params, facts: owned(task, task.init(key), facts.id), steps=work.steps,
                         deploy=lambda server: server.params, personal=lambda key, server, y, data: y)
