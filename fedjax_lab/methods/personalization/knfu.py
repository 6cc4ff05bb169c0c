"""KnFu: clients fuse what others say of unlabeled public examples, each most from those whose labels are like its own.

Seyedmohammadi, Atapour, Abouei, Mohammadi, "KnFu: Effective Knowledge Fusion", 2024.

    (1)  y_n <- y_n - lr grad F_n(y_n; b)                    a model of its own, from its last one
    (2)  P_n(u) = softmax( f(u; y_n) / T ) for every public example u, and p_n, the frequencies of its labels, smoothed
    (3)  a_nm ~ exp( -beta dist(p_n, p_m) )                  over the clients of the round, or the `nearest` of them
    (4)  Q_n = sum_m a_nm P_m
    (5)  y_n <- y_n - lr grad T^2 KL( Q_n || softmax(f(u; y_n) / T) )      for `tune_epochs` of the public examples

Keeps: the weights a_n of every client sum to one; clients with equal frequencies fuse alike.
Reduces to: a uniform fusion (FedMD's, of probabilities) with beta = 0; training alone with tune_epochs = 0.
Departs: the paper's own formula for (3) is not recovered; this is the card's. Clients of one architecture have one initialization.
The fused knowledge waits at the server in a table of all clients. The global model that is evaluated is the initialization.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import examples, proxy
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import owned
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree

NO_MODEL = "no model is sent, only probabilities"
SMOOTHED = 1e-3


class Server(NamedTuple):
    """params: the first ones;  fused: [N, D, C], Q_n of the clients that were last heard."""

    params: Tree
    fused: jax.Array


def distances(p: jax.Array, dist: str) -> jax.Array:
    """[S, S] between the frequencies p [S, C], which are above zero."""
    if dist == "variation":
        return 0.5 * jnp.sum(jnp.abs(p[:, None] - p[None]), -1)
    return jnp.sum((p[:, None] - p[None]) * (jnp.log(p)[:, None] - jnp.log(p)[None]), -1)  # KL both ways


def weights(p: jax.Array, there: jax.Array, beta: float, dist: str, nearest: int) -> jax.Array:
    """a [S, S] of (3): row n are the weights of client n, zero for those who are not there [S]."""
    far = jnp.where(there, distances(p, dist), jnp.inf)
    if nearest:
        far = jnp.where(far <= jnp.sort(far, 1)[:, min(nearest, len(p)) - 1, None], far, jnp.inf)
    return jax.nn.softmax(jnp.where(jnp.isinf(far), -jnp.inf, -beta * far), 1)


@method(family="personalization", paper="KnFu: Effective Knowledge Fusion", year=2024, stateful=True, several=True,
        refuses={"wire_up": NO_MODEL, "wire_down": NO_MODEL, "aggregator": NO_MODEL, "server": NO_MODEL}, epochs=5)
def knfu(task: Task, work: Work, *, beta: NonNegative = 10.0, temperature: Positive = 1.0, dist: Literal["kl", "variation"] = "kl",
         nearest: Annotated[int, Range(0)] = 0, tune_epochs: Annotated[int, Range(0)] = 1, tune_batch: Count = 64) -> Method:
    """Clients with models of their own learn from each other's probabilities on public examples, weighted by how alike their labels are.

    Args:
      beta: how fast the weight of another client falls with the distance of its labels' frequencies.
      temperature: of all softmaxes.
      dist: the symmetric KL divergence of the frequencies, or their total variation.
      nearest: fuse the knowledge of so many clients, itself among them; 0 for all.
      tune_epochs: passes over the public examples towards the fused knowledge.
      tune_batch: public examples in such a step.
    """

    def say(key, message, y, data):
        end = descend(batches(key, data, work), y, gradient(task), work.optimizer)  # (1)
        said = jax.nn.softmax(task.apply(end.params, proxy.view(data.public, data.id).whole()) / temperature)
        frequencies = data.counts / jnp.maximum(jnp.sum(data.counts), 1) + SMOOTHED
        return Result({"said": said, "labels": frequencies / jnp.sum(frequencies)}, 1.0, end.params, metrics={"loss": end.loss})  # (2)

    def fuse(key, server, aggregate, cohort):
        said, labels = (aggregate[field].uploads for field in ("said", "labels"))
        a = weights(jnp.where(cohort.mask[:, None], labels, 1.0), cohort.mask, beta, dist, nearest)  # (3)
        into = jnp.where(cohort.mask, cohort.ids, cohort.clients)
        return server._replace(fused=server.fused.at[into].set(jnp.tensordot(a, said, 1), mode="drop"))  # (4)

    def apart(y, batch):
        return temperature**2 * examples.divergence(batch["fused"], task.apply(y, batch), temperature)

    def tune(key, message, y, data):  # (5)
        if tune_epochs:
            taken = proxy.view({**data.public, "fused": message["fused"]}, data.id)
            plan = proxy.epochs(keys.purpose(key, "tune"), taken, tune_epochs, tune_batch)
            y = descend(plan, y, examples.direction(apart), work.optimizer).params
        return Result({}, 1.0, y)

    def init_server(key, params, census):
        proxy.demanded("knfu", census)
        if not census.classes:
            raise ValueError(f"'knfu' needs a classification task; '{task.name}' has no classes")
        return Server(params, jnp.zeros((census.clients, census.public, census.classes)))

    tuned = Method(tune, init_server=init_server, broadcast=lambda server, client, clock: {"fused": server.fused[client]},
                   serve=lambda key, server, aggregate, cohort: server)
    saying = tuned.phase(local=say, broadcast=lambda server, client, clock: {}, serve=fuse, aggregate={"said": together(), "labels": together()})
    return tuned._replace(phases=(saying, tuned.phase()), init_client=lambda key, params, facts: owned(task, params, facts.id), steps=work.steps,
                          deploy=lambda server: server.params, personal=lambda key, server, y, data: y)
