"""IFCA: iterative federated clustering.

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, Algorithm 1.

    (1)  k_i = argmin_k F_i(x_k^t)                                 on the client's training data, over the K models of the server
    (2)  y <- y - lr grad F_i(y; b)                                from y = x_{k_i}^t
    (3)  x_k^{t+1} = mean of y_i over the clients with k_i = k     a model that nobody chose stays; shared leaves: one mean over all clients

Keeps: of models that are equal everybody takes the first, so that equal starts are no clusters: they come from different keys.
Reduces to: FedAvg with one cluster.
Departs: the paper's averaging of gradients is local_steps = 1 with the whole batch. Every model goes to every client, and that is counted.
What is evaluated as the global model is the mean of the K.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.clusters import by_cluster, pick
from fedjax_lab.parts.leaves import named
from fedjax_lab.registry import method
from fedjax_lab.spec import Count
from fedjax_lab.types import Method, Result, Task

PAPER = "An Efficient Framework for Clustered Federated Learning"


@method(family="personalization", paper=PAPER, year=2020,
        refuses={"aggregator": "each cluster has a mean of its own", "server": "its server holds several models"})
def ifca(task: Task, work: Work, *, clusters: Count = 4, shared: str = "", weighting: Weighting = "uniform") -> Method:
    """Several global models; every client trains the one that fits its data best.

    Args:
      clusters: K, how many models.
      shared: a word in the path of the leaves that all clusters share, such as a trunk under K heads; none by default.
      weighting: clients count all alike, or by their examples.
    """

    def init_server(key, params, census):
        others = [task.init(keys.purpose(key, f"model{k}")) for k in range(1, clusters)]
        models = jax.tree.map(lambda *x: jnp.stack(x), params, *others)
        return _together(models, jnp.eye(clusters)[0])

    def _together(models, heard):
        """Shared leaves: the mean over the clusters by how many were heard, or as they are where nobody was."""
        if not shared:
            return models
        w = jnp.where(jnp.sum(heard) > 0, heard / jnp.maximum(jnp.sum(heard), 1e-12), 1 / clusters)
        one = jax.tree.map(lambda x: jnp.broadcast_to(jnp.tensordot(w, x, 1), x.shape), models)
        return jax.tree.map(lambda is_shared, one, own: one if is_shared else own, named(models, shared), one, models)

    def choose(models, data):
        batch = data.train.whole()
        return jnp.argmin(jax.lax.map(lambda model: task.loss(model, batch, None)[0], models))  # (1)

    def local(key, message, client, data):
        k = choose(message["model"], data)
        x = pick(message["model"], k)
        y = descend(batches(key, data, work), x, gradient(task), work.optimizer)  # (2)
        weight = weigh(weighting, data) * (jnp.arange(clusters) == k)
        return Result({"model": tree.sub(y.params, x)}, weight, metrics={"loss": y.loss})

    def serve(key, models, aggregate, cohort):
        change, heard = aggregate["model"]
        return _together(tree.add(models, change), heard)  # (3)

    return Method(local, init_server=init_server, broadcast=lambda models, client, clock: {"model": models}, serve=serve,
                  aggregate={"model": by_cluster()}, steps=work.steps, deploy=lambda models: jax.tree.map(lambda x: jnp.mean(x, 0), models),
                  personal=lambda key, models, client, data: pick(models, choose(models, data)))
